"""A small FCOS for the digits: strides 8 and 16, a two-block head of 48 channels."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from d2kd.modeling.backbones import group_norm

from .digits_backbone import student_backbone

model = L(FCOS)(
    backbone=student_backbone,
    head=L(FCOSHead)(
        input_shape=[ShapeSpec(channels=48)] * 2,
        num_classes="${..num_classes}",
        conv_dims=[48, 48],
        norm=L(group_norm)(num_groups=8),
        prior_prob=0.01,
    ),
    head_in_features=["p3", "p4"],
    num_classes=5,
    test_score_thresh=0.03,
    test_topk_candidates=300,
    test_nms_thresh=0.6,
    max_detections_per_image=60,
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[57.375, 57.12, 58.395],
)
