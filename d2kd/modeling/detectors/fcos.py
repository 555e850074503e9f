"""Detectron2's FCOS in its yacs configs, where it has no form of its own: the keys, and the builder that reads them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling.meta_arch import fcos
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY

from d2kd.modeling.detectors.config import common_arguments, common_defaults

__all__ = ["add_fcos_config"]


def add_fcos_config(cfg: CfgNode) -> None:
    """
    Add ``cfg.MODEL.FCOS`` with the values of Detectron2's LazyConfig, and register its builder, for
    ``MODEL.META_ARCHITECTURE: FCOS``. That is done here and not on import, since a project may have an "FCOS" of its
    own: that one stays.

    Its backbone is ``MODEL.BACKBONE.NAME: build_resnet_fpn_relu_p6p7_backbone`` with ``MODEL.RESNETS.OUT_FEATURES`` and
    ``MODEL.FPN.IN_FEATURES`` res3 to res5; neither these nor the pixel statistics are touched here.
    """
    node = cfg.MODEL.FCOS = common_defaults()
    # A point is positive up to so many strides from an object's centre.
    node.CENTER_SAMPLING_RADIUS = 1.5
    node.FOCAL_LOSS_GAMMA = 2.0
    node.FOCAL_LOSS_ALPHA = 0.25
    # Of the root of class score times centerness.
    node.SCORE_THRESH_TEST = 0.2
    if "FCOS" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(FCOS)


def FCOS(cfg: CfgNode) -> fcos.FCOS:
    """Build Detectron2's class of the same name from a yacs config: this function's name is its key in the registry."""
    node = cfg.MODEL.FCOS
    detector = fcos.FCOS(
        **common_arguments(cfg, node, fcos.FCOSHead),
        center_sampling_radius=node.CENTER_SAMPLING_RADIUS,
        focal_loss_alpha=node.FOCAL_LOSS_ALPHA,
        focal_loss_gamma=node.FOCAL_LOSS_GAMMA,
    )
    detector.input_format = cfg.INPUT.FORMAT  # which the class does not keep
    return detector
