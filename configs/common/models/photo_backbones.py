"""Backbones with an FPN for small photographs: a narrow ResNet from scratch, EfficientNet-Lite0 whole and cut short."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from d2kd.modeling.backbones import TimmBackbone, efficientnet_lite_weights


def fpn(bottom_up, in_features, channels):
    return L(FPN)(bottom_up=bottom_up, in_features=in_features, out_channels=channels, norm="BN")


def resnet(stem, widths, out_features):
    """
    Args:
        stem: channels of the stem (stride 4).
        widths: channels of res2 (stride 4), res3 and so on, a basic block each.
        out_features: of these.
    """
    stages = [
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=1,
            in_channels=in_channels,
            out_channels=out_channels,
            stride_per_block=[stride],
            norm="BN",
        )
        for in_channels, out_channels, stride in zip([stem, *widths], widths, [1, 2, 2, 2])
    ]
    return L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=stem, norm="BN"),
        stages=stages,
        out_features=out_features,
        freeze_at=0,
    )


def lite0(out_indices, **kwargs):
    """ImageNet weights; what is left of the network after its last output is not built."""
    return L(TimmBackbone)(
        name="tf_efficientnet_lite0",
        out_indices=out_indices,
        feature_cls="getter",
        weights=L(efficientnet_lite_weights)(variant="lite0"),
        channels_last=True,
        **kwargs,
    )
