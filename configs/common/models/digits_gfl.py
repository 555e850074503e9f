"""A small GFL for the digits: strides 8 and 16, a two-block head of 48 channels, distances of up to 8 strides."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from d2kd.modeling.backbones import group_norm
from d2kd.modeling.detectors import GFL, ATSSAssigner, GFLHead

from .digits_backbone import small_student_backbone

model = L(GFL)(
    backbone=small_student_backbone,
    head=L(GFLHead)(
        input_shape=[ShapeSpec(channels=48)] * 2,
        num_classes="${..num_classes}",
        conv_dims=[48, 48],
        norm=L(group_norm)(num_groups=8),
        prior_prob=0.01,
        reg_max=8,
    ),
    # Half the size of the papers' anchors a stride: the digits are 20 to 48 pixels.
    anchor_generator=L(DefaultAnchorGenerator)(sizes=[[32], [64]], aspect_ratios=[1.0], strides=[8, 16], offset=0.0),
    assigner=L(ATSSAssigner)(topk=9),
    head_in_features=["p3", "p4"],
    num_classes=5,
    test_score_thresh=0.03,
    test_topk_candidates=300,
    test_nms_thresh=0.6,
    max_detections_per_image=60,
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[57.375, 57.12, 58.395],
    input_format="BGR",
)
