"""RetinaNet: A anchors a cell, class logits and box deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes
from torch import Tensor, nn

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY, Adapter, predictors_of
from d2kd.modeling.adapters.maps import check_maps, decode, view_anchors, view_boxes
from d2kd.modeling.detectors import DenseHead, DistributionBoxes
from d2kd.modeling.detectors.interface import box_transform_of, num_classes_of
from d2kd.structures import DenseOutput

__all__ = ["RetinaNetAdapter"]


@ADAPTER_REGISTRY.register()
class RetinaNetAdapter(Adapter):
    """Reads ``RetinaNet`` with ``RetinaNetHead``, a head with the same four children, or ``DenseHead``."""

    detector_class = RetinaNet

    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if isinstance(head, DenseHead):
            return head.predict(level, towers_out)
        cls_score, bbox_pred = predictors_of(head, "cls_score", "bbox_pred")
        return cls_score(towers_out["cls"]), bbox_pred(towers_out["box"])

    def dense_output(
        self, detector: DenseDetector, predictions: Sequence[Sequence[Tensor]], anchors: Sequence[Boxes]
    ) -> DenseOutput:
        num_classes = num_classes_of(detector)
        bins = detector.bins if isinstance(detector, DistributionBoxes) else None
        channels = {"class logits": num_classes, "boxes": 4 * (bins or 1)}
        check_maps(detector, predictions, anchors, channels | ({"centerness": 1} if self.has_centerness else {}))
        logits, box_maps = predictions[:2]
        return DenseOutput(
            logits=[x.unflatten(1, (-1, num_classes)) for x in logits],
            box_params=view_boxes(detector, box_maps),
            anchors=[view_anchors(boxes, x) for boxes, x in zip(anchors, logits)],
            decode=partial(decode, detector),
            centerness=list(predictions[2]) if self.has_centerness else None,
            # A distribution's expectation has no negative side to cut off.
            rectified=isinstance(box_transform_of(detector), Box2BoxTransformLinear) and bins is None,
        )
