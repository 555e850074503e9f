"""A small RetinaNet for the digits: strides 8 and 16, three scales and one ratio, a two-block head of 48 channels."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from d2kd.modeling.backbones import group_norm

from .digits_backbone import student_backbone

model = L(RetinaNet)(
    backbone=student_backbone,
    head=L(RetinaNetHead)(
        input_shape=[ShapeSpec(channels=48)] * 2,
        num_classes="${..num_classes}",
        num_anchors=3,
        conv_dims=[48, 48],
        norm=L(group_norm)(num_groups=8),
        prior_prob=0.01,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[16, 20, 25], [32, 40, 50]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
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
