"""Which model node a checkpoint fits: a file below d2kd's configs and what to change in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from d2kd.config import get_config
from d2kd.conversion.architecture import Architecture
from d2kd.conversion.families import FAMILIES, STYLES, Pixels
from d2kd.conversion.stated import Stated

__all__ = ["Target", "find_target"]

_STRIDE = "backbone.bottom_up.stages.stride_in_1x1"


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        config: file below d2kd's configs with a ``model``.
        model: its node with the changes and removals applied, for :func:`d2kd.config.distill` or ``instantiate``.
        changes: path below ``model`` -> its value.
        removals: paths below ``model`` to delete.
        style: name of the weights' style.
        pixels: what it expects of images.
        stated: what the file says of itself and the options say of it.
    """

    config: str
    model: DictConfig = field(repr=False)
    changes: Mapping[str, Any]
    removals: tuple[str, ...]
    style: str
    pixels: Pixels
    stated: Stated

    def statements(self) -> list[str]:
        """The changes as lines of a LazyConfig file."""
        return [f"del model.{path}" for path in self.removals] + [
            f"model.{path} = {value!r}" for path, value in self.changes.items()
        ]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state dict of that model, on the meta device: names, shapes and types."""
        with torch.device("meta"):
            return dict(instantiate(self.model).state_dict())


def find_target(architecture: Architecture, detector: str, stated: Stated) -> Target:
    """
    Args:
        architecture: what the weights tell.
        detector: a key of :data:`FAMILIES`.
        stated: what the file says of itself and the options say of it; the rest is as in the published files.
    """
    config = FAMILIES[detector].config
    model = get_config(config).model
    style = stated.style or FAMILIES[detector].style
    pixels = stated.pixels or STYLES[style].pixels
    wanted: dict[str, Any] = {
        "num_classes": architecture.num_classes,
        "backbone.bottom_up.stages.depth": architecture.depth,
        "backbone.out_channels": architecture.width,
        "backbone.top_block.in_feature": "res5" if architecture.p6_from == "c5" else "p5",
        "backbone.top_block.in_channels": architecture.p6_channels,
        "head.conv_dims": list(architecture.conv_dims),
        "pixel_mean": list(pixels.mean),
        "pixel_std": list(pixels.std),
    }
    if stated.relu_before_p7 is not None:
        wanted["backbone.top_block.relu_before_p7"] = stated.relu_before_p7
    if stated.anchors is not None:
        wanted["anchor_generator.sizes"] = stated.anchors.sizes()
        wanted["anchor_generator.aspect_ratios"] = list(stated.anchors.ratios)
        wanted["anchor_generator.offset"] = stated.anchors.offset
    if stated.stds is not None:
        wanted["box2box_transform.weights"] = [1 / std for std in stated.stds]
    if detector == "retinanet":
        wanted["head.num_anchors"] = architecture.anchors[0] * architecture.anchors[1]
    removals: tuple[str, ...] = ()
    if architecture.depth >= 50:
        if _value(model, _STRIDE, False) != STYLES[style].stride_in_1x1:
            wanted[_STRIDE] = STYLES[style].stride_in_1x1
    elif _value(model, _STRIDE) is not None:  # basic blocks have no 1x1 convolution and take no such argument
        removals = (_STRIDE,)
        del model.backbone.bottom_up.stages.stride_in_1x1
    if detector != "retinanet":  # Detectron2's own head, whose towers have no norm
        wanted["head.norm"] = "GN" if architecture.tower_norm else ""
    if detector != "fcos":  # Detectron2's FCOS has no such argument; DistilledDetector has
        wanted["input_format"] = pixels.input_format
    if detector == "gfl":
        wanted["head.reg_max"] = architecture.reg_max
    if detector == "fcos":
        wanted["head.centerness_on"] = "box" if stated.centerness_on_reg else "cls"
        wanted["head.box_activation"] = None if stated.norm_on_bbox else "exp"
        wanted["box2box_transform.normalize_by_size"] = bool(stated.norm_on_bbox)

    changes = {}
    for path, value in wanted.items():  # in this order: some values refer to others
        if _value(model, path) != value:
            changes[path] = value
            OmegaConf.update(model, path, value, merge=False, force_add=True)
    return Target(config, model, changes, removals, style, pixels, stated)


def _value(model: DictConfig, path: str, default: Any = None) -> Any:
    value = OmegaConf.select(model, path, default=default)
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
