"""Narrow ResNets with an FPN of 48 channels for 96-pixel images: two for students, one for teachers."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock


def backbone(stem, widths, depth):
    """
    Args:
        stem: channels of the stem (stride 4).
        widths: channels of res2 (stride 4), res3 (stride 8) and res4 (stride 16).
        depth: basic blocks in each of them.
    """
    stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=depth,
            in_channels=in_channels,
            out_channels=out_channels,
            stride_per_block=[stride] + [1] * (depth - 1),
            norm="BN",
        )
        for in_channels, out_channels, stride in zip([stem, *widths], widths, [1, 2, 2])
    ]
    return L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=stem, norm="BN"),
            stages=stages,
            out_features=["res3", "res4"],
            freeze_at=0,
        ),
        in_features=["res3", "res4"],
        out_channels=48,
        norm="BN",
    )


student_backbone = backbone(stem=16, widths=[16, 24, 48], depth=1)
small_student_backbone = backbone(stem=8, widths=[8, 16, 32], depth=1)
teacher_backbone = backbone(stem=16, widths=[32, 64, 128], depth=2)
