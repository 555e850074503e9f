"""
The presets: method x detector family -> losses node, with the papers' hyper-parameters, a file a method.

``methods.md`` in the docs says where each figure comes from, which of them are carried over from another detector and
which are reconstructed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches

from omegaconf import DictConfig

from d2kd.methods.base import Method, combined
from d2kd.methods.bckd import BCKD
from d2kd.methods.crosskd import CROSSKD
from d2kd.methods.cwd import CWD
from d2kd.methods.description import LossDescription, MethodDescription, MethodDescriptions
from d2kd.methods.ftpd import FTPD, FTPD_HETERO
from d2kd.methods.ld import LD
from d2kd.methods.pkd import PKD
from d2kd.methods.tid import TID, TID_RELIABLE

__all__ = [
    "METHODS",
    "LossDescription",
    "Method",
    "MethodDescription",
    "MethodDescriptions",
    "describe",
    "get_losses",
    "list_methods",
]

#: method -> detector family -> losses node.
METHODS: Mapping[str, Method] = {
    "bckd": BCKD,
    "ld": LD,
    "crosskd": CROSSKD,
    "ftpd": FTPD,
    "ftpd_hetero": FTPD_HETERO,
    "tid": TID,
    "tid_reliable": TID_RELIABLE,
    "pkd": PKD,
    "cwd": CWD,
    "bckd_pkd": combined(BCKD, PKD),
    "crosskd_pkd": combined(CROSSKD, PKD),
    "ftpd_tid": combined(FTPD, TID),
}


def get_losses(method: str, *families: str, teacher: str | Sequence[str] = ()) -> dict[str, DictConfig]:
    """
    The losses node of a method for a detector, a copy that may be changed.

    Args:
        method: a name in :data:`METHODS`.
        families: names of the detector's class and of those it derives from, the nearest first: the first that the
            method has a preset for is taken.
        teacher: the same of a teacher of another family: crossed losses are those of its preset, since a crossed
            output is in the teacher's coding. Empty, or none that the method has a preset for: the detector's own.

    Raises:
        ValueError: an unknown method (the nearest names are suggested), or one without a preset for these.
    """
    presets = _known(method)
    own = next((family for family in families if family in presets), None)
    if own is not None:
        losses = deepcopy(dict(presets[own]))
        teacher = [teacher] if isinstance(teacher, str) else teacher
        theirs = next((family for family in teacher if family in presets), own)
        crossed = {name: node for name, node in deepcopy(dict(presets[theirs])).items() if _is_crossed(node)}
        return crossed | {name: node for name, node in losses.items() if not _is_crossed(node)}
    raise ValueError(
        f"Method {method!r} has no preset for {' or '.join(families)}, only for {', '.join(presets)}; give "
        "losses={...} instead."
    )


def _is_crossed(node: DictConfig) -> bool:
    return node.get("source") == "crossed"


def list_methods() -> MethodDescriptions:
    """Every method: name -> its paper, detectors, needs and losses. ``print`` it to read them all."""
    return MethodDescriptions({name: describe(name) for name in METHODS})


def describe(method: str) -> MethodDescription:
    """
    One entry of :func:`list_methods`.

    Raises:
        ValueError: an unknown method (the nearest names are suggested).
    """
    return MethodDescription.of(method, _known(method))


def _known(method: str) -> Method:
    if method not in METHODS:
        near = get_close_matches(method.lower(), METHODS)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"Unknown method {method!r}, expected one of {', '.join(METHODS)}{hint}")
    return METHODS[method]
