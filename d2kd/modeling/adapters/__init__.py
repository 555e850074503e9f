"""Adapters: the only code that knows how a detector family's head is built."""

from d2kd.modeling.adapters.atss import ATSSAdapter
from d2kd.modeling.adapters.base import ADAPTER_REGISTRY, Adapter, check_lists, family_of, get_adapter
from d2kd.modeling.adapters.fcos import FCOSAdapter
from d2kd.modeling.adapters.gfl import GFLAdapter
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter

__all__ = [
    "ADAPTER_REGISTRY",
    "ATSSAdapter",
    "Adapter",
    "FCOSAdapter",
    "GFLAdapter",
    "RetinaNetAdapter",
    "check_lists",
    "family_of",
    "get_adapter",
]
