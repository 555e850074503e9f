"""Adapters: how one family of detectors is read. Nothing else knows how a head is built."""

from d2kd.modeling.adapters.atss import ATSSAdapter
from d2kd.modeling.adapters.base import (
    ADAPTER_REGISTRY,
    Adapter,
    check_class,
    get_adapter,
    input_format_of,
    preset_families,
)
from d2kd.modeling.adapters.fcos import FCOSAdapter
from d2kd.modeling.adapters.gfl import GFLAdapter
from d2kd.modeling.adapters.maps import check_lists
from d2kd.modeling.adapters.probe import crosses_itself
from d2kd.modeling.adapters.retinanet import RetinaNetAdapter
from d2kd.modeling.adapters.self_check import AdapterReport, check_adapter
from d2kd.modeling.adapters.tails import cross_head, tap_index, tap_indices
from d2kd.modeling.adapters.taps import Taps, guarded_hooks, record_taps, tap_channels

__all__ = [
    "ADAPTER_REGISTRY",
    "ATSSAdapter",
    "Adapter",
    "AdapterReport",
    "FCOSAdapter",
    "GFLAdapter",
    "RetinaNetAdapter",
    "Taps",
    "check_adapter",
    "check_class",
    "check_lists",
    "cross_head",
    "crosses_itself",
    "get_adapter",
    "guarded_hooks",
    "input_format_of",
    "preset_families",
    "record_taps",
    "tap_channels",
    "tap_index",
    "tap_indices",
]
