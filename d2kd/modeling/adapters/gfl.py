"""GFL: one anchor a cell, class logits that hold the box's quality, and a distribution for each side."""

from __future__ import annotations

from torch import Tensor

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter
from d2kd.modeling.detectors import GFL

__all__ = ["GFLAdapter"]


@ADAPTER_REGISTRY.register()
class GFLAdapter(RetinaNetAdapter):
    """Reads ``GFL``, whose anchors beyond an image's own padded size take no part."""

    detector_class = GFL

    def valid_anchors(self, labels: Tensor) -> Tensor:
        return labels >= 0  # these detectors ignore no other anchor
