"""GFL and ATSS from Detectron2's yacs configs: their defaults, and how those become arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn

import d2kd.modeling.backbones.fpn  # noqa: F401  # registers the backbones that the docstrings name
from d2kd.modeling.detectors.assigner import ATSSAssigner

__all__ = ["add_atss_config", "add_gfl_config", "common_arguments", "common_defaults", "yacs_arguments"]


def add_gfl_config(cfg: CfgNode) -> None:
    """
    Add ``cfg.MODEL.GFL`` with the paper's values, for ``MODEL.META_ARCHITECTURE: GFL``.

    Its backbone is ``MODEL.BACKBONE.NAME: build_resnet_fpn_p6p7_backbone`` with ``MODEL.RESNETS.OUT_FEATURES`` and
    ``MODEL.FPN.IN_FEATURES`` res3 to res5; neither these nor the pixel statistics are touched here.
    """
    node = cfg.MODEL.GFL = _assigned_defaults()
    # Bins of a side's distribution: REG_MAX + 1, over distances of 0 to REG_MAX strides.
    node.REG_MAX = 16
    # Exponent of the quality focal loss.
    node.QFL_BETA = 2.0
    # Weights of the GIoU loss and of the distribution focal loss.
    node.BBOX_REG_LOSS_WEIGHT = 2.0
    node.DFL_LOSS_WEIGHT = 0.25


def add_atss_config(cfg: CfgNode) -> None:
    """Add ``cfg.MODEL.ATSS`` with the paper's values, for ``MODEL.META_ARCHITECTURE: ATSS``; see
    :func:`add_gfl_config`."""
    node = cfg.MODEL.ATSS = _assigned_defaults()
    # Weights on (dx, dy, dw, dh) of the box code.
    node.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    node.FOCAL_LOSS_GAMMA = 2.0
    node.FOCAL_LOSS_ALPHA = 0.25
    # Weights of the GIoU loss and of the centerness loss.
    node.BBOX_REG_LOSS_WEIGHT = 2.0
    node.CENTERNESS_LOSS_WEIGHT = 1.0


def common_defaults() -> CfgNode:
    """The keys that GFL, ATSS and FCOS share."""
    node = CfgNode()
    # Foreground classes.
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each tower, and the norm that follows them.
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # Score of every class at the start of training.
    node.PRIOR_PROB = 0.01
    # Inference: the class score that a detection must exceed, candidates of a level, IoU of suppression.
    node.SCORE_THRESH_TEST = 0.05
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.6
    return node


def _assigned_defaults() -> CfgNode:
    node = common_defaults()
    # Side of the square anchor of a cell, in strides, and the place of its centre in the cell.
    node.ANCHOR_SCALE = 8.0
    node.ANCHOR_OFFSET = 0.0
    # Candidates of each object and level in assignment.
    node.ATSS_TOPK = 9
    return node


def common_arguments(cfg: CfgNode, node: CfgNode, build_head: Callable[..., nn.Module]) -> dict[str, Any]:
    """
    The arguments that GFL, ATSS and FCOS share.

    Args:
        cfg: the whole config.
        node: of the detector, such as ``cfg.MODEL.GFL``.
        build_head: called with the arguments that their heads share.
    """
    backbone = build_backbone(cfg)
    shapes: Sequence[ShapeSpec] = [backbone.output_shape()[name] for name in node.IN_FEATURES]
    head = build_head(
        input_shape=shapes,
        num_classes=node.NUM_CLASSES,
        conv_dims=[shapes[0].channels] * node.NUM_CONVS,
        norm=node.NORM,
        prior_prob=node.PRIOR_PROB,
    )
    return {
        "backbone": backbone,
        "head": head,
        "head_in_features": node.IN_FEATURES,
        "num_classes": node.NUM_CLASSES,
        "test_score_thresh": node.SCORE_THRESH_TEST,
        "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": node.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


def yacs_arguments(cfg: CfgNode, node: CfgNode, build_head: Callable[..., nn.Module]) -> dict[str, Any]:
    """The arguments of :class:`AssignedDetector` without the box transform; see :func:`common_arguments`."""
    arguments = common_arguments(cfg, node, build_head)
    shapes = arguments["backbone"].output_shape()
    strides = [shapes[name].stride for name in node.IN_FEATURES]
    return {
        **arguments,
        "anchor_generator": DefaultAnchorGenerator(
            sizes=[[node.ANCHOR_SCALE * stride] for stride in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=node.ANCHOR_OFFSET,
        ),
        "assigner": ATSSAssigner(topk=node.ATSS_TOPK),
        "input_format": cfg.INPUT.FORMAT,
    }
