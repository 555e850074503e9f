"""GFL: one anchor a cell, class logits that hold the box's quality, and a distribution for each side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter
from d2kd.modeling.dense_output import Assignment
from d2kd.modeling.detectors import GFL

__all__ = ["GFLAdapter"]


@ADAPTER_REGISTRY.register()
class GFLAdapter(RetinaNetAdapter):
    """Reads ``GFL``, whose anchors beyond an image's own padded size take no part."""

    detector_class = GFL

    def assignment(
        self,
        detector: GFL,
        anchors: Sequence[Boxes],
        labels: Sequence[Tensor],
        gt_instances: Sequence[Instances],
        sizes: Sequence[tuple[int, int]],
    ) -> Assignment:
        return Assignment.from_flat(
            labels,
            detector.num_classes,
            sizes,
            gt_boxes=[x.gt_boxes.tensor for x in gt_instances],
            valid=torch.stack(list(labels)) >= 0,  # these detectors ignore no other anchor
        )
