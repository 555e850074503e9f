"""A small GFL for the cards: strides 16 and 32, a two-block head of 48 channels, a ResNet from scratch."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from d2kd.modeling.backbones import group_norm
from d2kd.modeling.detectors import GFL, ATSSAssigner, GFLHead

from .photo_backbones import fpn, resnet

model = L(GFL)(
    backbone=fpn(resnet(stem=16, widths=[16, 32, 64, 96], out_features=["res4", "res5"]), ["res4", "res5"], 48),
    head=L(GFLHead)(
        input_shape=[ShapeSpec(channels=48)] * 2,
        num_classes="${..num_classes}",
        conv_dims=[48, 48],
        norm=L(group_norm)(num_groups=8),
        prior_prob=0.01,
        reg_max=8,
    ),
    # Half the papers' size a stride: the cards are 35 to 100 pixels where the short side is 144.
    anchor_generator=L(DefaultAnchorGenerator)(sizes=[[64], [128]], aspect_ratios=[1.0], strides=[16, 32], offset=0.0),
    assigner=L(ATSSAssigner)(topk=9),
    head_in_features=["p4", "p5"],
    num_classes=6,
    test_score_thresh=0.03,
    test_topk_candidates=300,
    test_nms_thresh=0.6,
    max_detections_per_image=60,
    pixel_mean=[127.5, 127.5, 127.5],
    pixel_std=[127.5, 127.5, 127.5],
    input_format="RGB",
)
