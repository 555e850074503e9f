"""FCOS: one anchor point a cell, class logits, distances and centerness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from torch import Tensor, nn

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter
from d2kd.modeling.dense_output import DenseOutput

__all__ = ["FCOSAdapter"]


@ADAPTER_REGISTRY.register()
class FCOSAdapter(RetinaNetAdapter):
    """Reads ``FCOS`` with ``FCOSHead``, whose centerness hangs on the box tower."""

    detector_class = FCOS

    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return *super().predict(head, level, towers_out), head.ctrness(towers_out["box"])

    def dense_output(
        self, detector: FCOS, predictions: Sequence[Sequence[Tensor]], anchors: Sequence[Boxes]
    ) -> DenseOutput:
        output = super().dense_output(detector, predictions, anchors)
        output.centerness = list(predictions[2])
        return output
