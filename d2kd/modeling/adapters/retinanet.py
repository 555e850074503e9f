"""RetinaNet: A anchors a cell, class logits and box deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes
from torch import Tensor, nn

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY, Adapter, check_predictors
from d2kd.modeling.adapters.maps import check_maps, decode, view_anchors, view_boxes
from d2kd.modeling.detectors import DenseHead, DistributionBoxes
from d2kd.structures import DenseOutput

__all__ = ["RetinaNetAdapter"]


@ADAPTER_REGISTRY.register()
class RetinaNetAdapter(Adapter):
    """Reads ``RetinaNet`` with ``RetinaNetHead``, a head with the same four children, or ``DenseHead``."""

    detector_class = RetinaNet

    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if isinstance(head, DenseHead):
            return head.predict(level, towers_out)
        check_predictors(head, "cls_score", "bbox_pred")
        return head.cls_score(towers_out["cls"]), head.bbox_pred(towers_out["box"])

    def dense_output(
        self, detector: RetinaNet, predictions: Sequence[Sequence[Tensor]], anchors: Sequence[Boxes]
    ) -> DenseOutput:
        box_numbers = 4 * (detector.head.reg_max + 1) if isinstance(detector, DistributionBoxes) else 4
        channels = {"class logits": detector.num_classes, "boxes": box_numbers}
        check_maps(detector, predictions, anchors, channels | ({"centerness": 1} if self.has_centerness else {}))
        logits, boxes = predictions[:2]
        return DenseOutput(
            logits=[x.unflatten(1, (-1, detector.num_classes)) for x in logits],
            box_params=view_boxes(detector, boxes),
            anchors=[view_anchors(a, x.shape[-2:]) for a, x in zip(anchors, logits)],
            decode=partial(decode, detector),
            centerness=list(predictions[2]) if self.has_centerness else None,
            # A distribution's expectation has no negative side to cut off.
            rectified=isinstance(detector.box2box_transform, Box2BoxTransformLinear)
            and not isinstance(detector, DistributionBoxes),
        )
