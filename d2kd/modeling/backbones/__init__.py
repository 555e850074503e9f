"""Backbones and their parts that Detectron2 lacks: networks of timm, an FPN's top levels, norms."""

from d2kd.modeling.backbones.efficientnet_lite import efficientnet_lite_weights
from d2kd.modeling.backbones.fpn import (
    P6P7,
    build_resnet_fpn_p6p7_backbone,
    build_resnet_fpn_relu_p6p7_backbone,
)
from d2kd.modeling.backbones.norms import FrozenStatisticsBatchNorm2d, group_norm
from d2kd.modeling.backbones.timm_backbone import TimmBackbone

__all__ = [
    "P6P7",
    "FrozenStatisticsBatchNorm2d",
    "TimmBackbone",
    "build_resnet_fpn_p6p7_backbone",
    "build_resnet_fpn_relu_p6p7_backbone",
    "efficientnet_lite_weights",
    "group_norm",
]
