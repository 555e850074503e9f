"""
GFL R50-FPN as the papers train it, which converted OpenMMLab checkpoints fit (docs/converting.md): torchvision's
ResNet, whose bottlenecks stride in the 3x3 convolution (Detectron2's default), frozen statistics of batch norm, RGB
images.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet

from d2kd.modeling.backbones import P6P7, FrozenStatisticsBatchNorm2d
from d2kd.modeling.detectors import GFL, ATSSAssigner, GFLHead

model = L(GFL)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm=FrozenStatisticsBatchNorm2d),
            stages=L(ResNet.make_default_stages)(depth=50, norm=FrozenStatisticsBatchNorm2d),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=L(P6P7)(
            in_channels="${..out_channels}", out_channels="${..out_channels}", in_feature="p5", relu_before_p7=False
        ),
    ),
    head=L(GFLHead)(
        input_shape=[L(ShapeSpec)(channels="${....backbone.out_channels}")] * 5,
        num_classes="${..num_classes}",
        conv_dims=[256, 256, 256, 256],
        norm="GN",
        prior_prob=0.01,
        reg_max=16,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[64], [128], [256], [512], [1024]], aspect_ratios=[1.0], strides=[8, 16, 32, 64, 128], offset=0.0
    ),
    assigner=L(ATSSAssigner)(topk=9),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    num_classes=80,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms_thresh=0.6,
    max_detections_per_image=100,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
