"""RetinaNet: A anchors a cell, class logits and box deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes
from torch import Tensor, nn

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY, Adapter, apply_deltas, view_anchors
from d2kd.modeling.dense_output import DenseOutput

__all__ = ["RetinaNetAdapter"]


@ADAPTER_REGISTRY.register()
class RetinaNetAdapter(Adapter):
    """Reads ``RetinaNet`` with ``RetinaNetHead`` or a head with the same four children."""

    detector_class = RetinaNet

    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return head.cls_score(towers_out["cls"]), head.bbox_pred(towers_out["box"])

    def dense_output(
        self, detector: RetinaNet, predictions: Sequence[Sequence[Tensor]], anchors: Sequence[Boxes]
    ) -> DenseOutput:
        logits, deltas = predictions[:2]
        return DenseOutput(
            logits=[x.unflatten(1, (-1, detector.num_classes)) for x in logits],
            box_params=[x.unflatten(1, (-1, 4)) for x in deltas],
            anchors=[view_anchors(a, x.shape[-2:]) for a, x in zip(anchors, logits)],
            decode=partial(apply_deltas, detector.box2box_transform),
        )
