"""PKD's presets, with the weights that CrossKD's configurations give it beside CrossKD."""

from __future__ import annotations

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from d2kd.losses import PearsonFeatureKD
from d2kd.methods.base import Method


def _losses(weight: float) -> dict[str, DictConfig]:
    return dict(pkd=L(PearsonFeatureKD)(weight=weight, region="everywhere", normalizer="level_locations"))


PKD = Method(
    paper="PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient, NeurIPS 2022",
    needs=("features of the same width, or losses.pkd.projector_channels",),
    presets={"RetinaNet": _losses(2.0), "FCOS": _losses(2.0), "GFL": _losses(6.0), "ATSS": _losses(1.0)},
)
