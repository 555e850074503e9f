"""FCOS: one anchor point a cell, class logits, distances (or distributions) and centerness."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor, nn

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY, predictors_of
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter
from d2kd.modeling.detectors import DenseHead

__all__ = ["FCOSAdapter"]


@ADAPTER_REGISTRY.register()
class FCOSAdapter(RetinaNetAdapter):
    """Reads ``FCOS`` with ``FCOSHead``, whose centerness hangs on the box tower, or with ``DenseHead``."""

    detector_class = FCOS
    has_centerness = True

    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        predictions = super().predict(head, level, towers_out)
        if isinstance(head, DenseHead):
            return predictions
        (ctrness,) = predictors_of(head, "ctrness")
        return (*predictions, ctrness(towers_out["box"]))
