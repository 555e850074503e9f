"""Distillation in Detectron2's yacs configs: the keys, and how they become arguments of DistilledDetector."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from d2kd.config.lazy import preset_families
from d2kd.config.teacher_file import build_registered, teacher_node
from d2kd.losses import DistillationLoss
from d2kd.methods import METHODS, get_losses
from d2kd.modeling import distillation

__all__ = ["DistilledDetector", "add_distillation_config", "constructor_arguments"]

_NODE = "MODEL.DISTILLATION"


def add_distillation_config(cfg: CfgNode) -> None:
    """
    Add ``cfg.MODEL.DISTILLATION``, for ``MODEL.META_ARCHITECTURE: DistilledDetector``.

    All other keys are the student's, as they would be without distillation. The teacher's stand in its own file.
    """
    node = cfg.MODEL.DISTILLATION = CfgNode()
    # What MODEL.META_ARCHITECTURE would be without distillation: "RetinaNet", "GFL", "ATSS" or a subclass of theirs.
    node.STUDENT_META_ARCHITECTURE = ""
    # A name of d2kd.list_methods(); "": the student alone, the baseline, whatever the keys below say.
    node.METHOD = ""
    # Changes to that method's losses: "NAME.FIELD=value", or "NAME=null" to switch one off.
    node.LOSSES = []
    # The teacher's own config, a yacs .yaml or a LazyConfig .py, and its checkpoint (path or URL). Neither is read
    # before training starts. Of a yacs teacher, the surest is the config.yaml that Detectron2 wrote beside the
    # checkpoint: it has every key, also those that a project added.
    node.TEACHER_CONFIG = ""
    node.TEACHER_WEIGHTS = ""
    # The teacher's detector family, if it is not the student's: crossed losses are then those of its preset, e.g.
    # "RetinaNet" for a GFL student; "": the student's.
    node.TEACHER_FAMILY = ""
    # Channel order that the teacher was trained with, "BGR" or "RGB"; "": its own input_format, else "BGR".
    node.TEACHER_INPUT_FORMAT = ""
    # Pairs [teacher's class id, student's class id], e.g. [[0, 2], [5, 0]]: what the teacher knows of the student's
    # classes, if not the same ones in the same order; []: the same ids. Classes of neither side's take no part.
    node.CLASS_MAP = []
    # [student's, teacher's channels] of the taps that a crossed loss sends into the teacher's head, where the heads'
    # widths differ: a trained 1x1 convolution a branch; []: none.
    node.TAP_PROJECTOR_CHANNELS = []


@META_ARCH_REGISTRY.register()
def DistilledDetector(cfg: CfgNode) -> distillation.DistilledDetector:
    """
    What ``MODEL.META_ARCHITECTURE: DistilledDetector`` builds: the registry knows a builder by its name.

    Raises:
        ValueError, TypeError: as :func:`constructor_arguments` and the class.
    """
    return distillation.DistilledDetector(**constructor_arguments(cfg))


def constructor_arguments(cfg: CfgNode) -> dict[str, Any]:
    """
    The arguments of :class:`DistilledDetector`; the student is built, the teacher is not.

    Args:
        cfg: a whole config with ``MODEL.DISTILLATION``; left as it is.

    Raises:
        ValueError: no ``MODEL.DISTILLATION``, a student that is no detector that d2kd reads, an unknown method, a
            method without a teacher, losses that cannot be changed so, or a class map that is none. Each message
            names the key.
        TypeError: the student overrides what d2kd replaces.
    """
    if "DISTILLATION" not in cfg.MODEL:
        raise ValueError(f"The config has no {_NODE}: call d2kd.add_distillation_config(cfg) before it is merged.")
    node = cfg.MODEL.DISTILLATION
    # First of all: a baseline of this seed starts from the same weights.
    student = build_registered(cfg, node.STUDENT_META_ARCHITECTURE, f"{_NODE}.STUDENT_META_ARCHITECTURE")
    arguments = {"student": student, "input_format": cfg.INPUT.FORMAT}
    if not node.METHOD:
        return arguments
    for key in ("TEACHER_CONFIG", "TEACHER_WEIGHTS"):
        if not node[key]:
            raise ValueError(
                f"{_NODE}.{key} is {node[key]!r}, but {_NODE}.METHOD is {node.METHOD!r}: give the path, or set METHOD "
                'to "" to train the student alone.'
            )
    return {
        **arguments,
        "losses": _build_losses(type(student), node.METHOD, node.TEACHER_FAMILY, node.LOSSES or ()),
        "teacher": {
            "model": teacher_node(node.TEACHER_CONFIG, f"{_NODE}.TEACHER_CONFIG"),
            "checkpoint": node.TEACHER_WEIGHTS,
            "input_format": node.TEACHER_INPUT_FORMAT or None,
            "class_map": _class_map(node.CLASS_MAP or ()),
        },
        "tap_projector_channels": node.TAP_PROJECTOR_CHANNELS or None,
    }


def _class_map(pairs: Sequence[Sequence[int]]) -> dict[int, int] | None:
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or any(type(x) is not int for x in pair):
            raise ValueError(
                f"{_NODE}.CLASS_MAP has {pair!r}, expected pairs [teacher's class id, student's class id] such as "
                "[[0, 2], [5, 0]]."
            )
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"{_NODE}.CLASS_MAP is {pairs}, which names one of the teacher's classes twice.")
    return result or None


def _build_losses(
    detector_class: type, method: str, teacher_family: str, changes: Sequence[str]
) -> dict[str, DistillationLoss]:
    try:
        losses = get_losses(method, *preset_families(detector_class), teacher=teacher_family)
    except ValueError as error:
        raise ValueError(f"{_NODE}.METHOD is {method!r}. {error}") from error
    if teacher_family and teacher_family not in METHODS[method]:
        raise ValueError(
            f"{_NODE}.TEACHER_FAMILY is {teacher_family!r}, expected one that {method} has a preset for: "
            f"{', '.join(METHODS[method])}."
        )
    losses = OmegaConf.create(losses, flags={"allow_objects": True})
    off = {name for change in changes if (name := _apply(losses, change, method))}
    built = {}
    with torch.random.fork_rng(devices=[]):  # as in the constructor: the baseline draws the same numbers after this
        for name, node in losses.items():
            if name in off:
                continue
            try:
                built[name] = instantiate(node)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{_NODE}.LOSSES is {list(changes)}, with which {method}'s {name} cannot be built: {error}"
                ) from error
    return built


def _apply(losses: DictConfig, change: str, method: str) -> str | None:
    """Make one change of LOSSES; returns the name of a loss that it switches off."""
    if not isinstance(change, str) or "=" not in change:
        raise ValueError(f"{_NODE}.LOSSES has {change!r}, expected texts 'NAME.FIELD=value' or 'NAME=null'.")
    path, value = (part.strip() for part in change.split("=", 1))
    name, _, field = path.partition(".")
    if name not in losses:
        near = get_close_matches(name, losses)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ValueError(
            f"{_NODE}.LOSSES has {change!r}, but {method} has no such loss, only {', '.join(losses)}{hint}"
        )
    if field:
        try:
            losses.merge_with_dotlist([f"{path}={value}"])
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"{_NODE}.LOSSES has {change!r}, which {name} cannot take: {error}") from error
        return None
    if value != "null":
        raise ValueError(f"{_NODE}.LOSSES has {change!r}, expected '{name}.FIELD=value' or '{name}=null'.")
    return name
