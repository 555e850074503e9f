"""Adapters: the only code that knows how a detector family's head is built."""

from d2kd.modeling.adapters.base import ADAPTER_REGISTRY, Adapter, family_of, get_adapter
from d2kd.modeling.adapters.fcos import FCOSAdapter
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter

__all__ = ["ADAPTER_REGISTRY", "Adapter", "FCOSAdapter", "RetinaNetAdapter", "family_of", "get_adapter"]
