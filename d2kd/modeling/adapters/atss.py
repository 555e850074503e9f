"""ATSS: one anchor a cell, class logits, box deltas (or distributions) and centerness."""

from __future__ import annotations

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY
from d2kd.modeling.adapters.gfl import GFLAdapter
from d2kd.modeling.detectors import ATSS

__all__ = ["ATSSAdapter"]


@ADAPTER_REGISTRY.register()
class ATSSAdapter(GFLAdapter):
    """Reads ``ATSS``, which differs from ``GFL`` for distillation by its centerness alone."""

    detector_class = ATSS
    has_centerness = True
