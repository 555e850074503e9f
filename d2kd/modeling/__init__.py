"""Detectors and the meta-architecture: the only package that knows Detectron2's detector classes."""

from d2kd.modeling.adapters import ADAPTER_REGISTRY, Adapter, check_adapter, get_adapter
from d2kd.modeling.distillation import DistilledDetector, Teacher, student

__all__ = [
    "ADAPTER_REGISTRY",
    "Adapter",
    "DistilledDetector",
    "Teacher",
    "check_adapter",
    "get_adapter",
    "student",
]
