"""RetinaNet with batch norm in its head, one set of statistics for all levels."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

from tests.helpers import build_backbone

from .common import dataloader, lr_multiplier, optimizer, train

model = L(RetinaNet)(
    backbone=L(build_backbone)(width=4, fpn=8, norm="FrozenBN"),
    head=L(RetinaNetHead)(
        input_shape=[ShapeSpec(channels=8)] * 3,
        num_classes="${..num_classes}",
        conv_dims=[8, 8],
        num_anchors=2,
        prior_prob=0.1,
        norm=nn.SyncBatchNorm,
    ),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[8, 12], [16, 24], [32, 48]], aspect_ratios=[1.0], strides=[8, 16, 32], offset=0.5
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    num_classes=3,
    head_in_features=["p3", "p4", "p5"],
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[57.375, 57.12, 58.395],
    input_format="BGR",
)
