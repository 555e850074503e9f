"""Detectors and the meta-architecture: the only room that knows Detectron2's detector classes."""

from d2kd.modeling.adapters import ADAPTER_REGISTRY, Adapter, get_adapter
from d2kd.modeling.dense_output import Assignment, DenseOutput
from d2kd.modeling.distilled_detector import DistilledDetector
from d2kd.modeling.teacher import Teacher

__all__ = [
    "ADAPTER_REGISTRY",
    "Adapter",
    "Assignment",
    "DenseOutput",
    "DistilledDetector",
    "Teacher",
    "get_adapter",
]
