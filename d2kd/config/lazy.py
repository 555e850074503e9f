"""Wrapping a LazyConfig model node, and changing its method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from inspect import signature
from typing import Any

from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import nn

from d2kd.config.nodes import self_contained, target_name, target_of
from d2kd.config.teacher_file import teacher_node
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.adapters import check_class, preset_families

__all__ = ["ALONE", "CONFIG", "distill", "with_method"]

#: What :func:`with_method` takes beside the names of methods: no losses, and the losses of the config.
ALONE, CONFIG = "alone", "config"


def distill(
    model: DictConfig,
    *,
    teacher: DictConfig | str | os.PathLike[str],
    teacher_checkpoint: str | None = None,
    method: str | None = None,
    losses: Mapping[str, Any] | None = None,
) -> DictConfig:
    """
    Wrap a model node of a LazyConfig so that it is distilled; the rest of the config stays as it is.

    The node moves under ``model.student``: what the rest of the config refers to as ``${model.num_classes}`` is then
    ``${model.student.num_classes}``. Only ``${model.input_format}`` stays. The node's own references to the rest of the
    config are resolved here, since they would point elsewhere from there.

    Every key of the result can be changed like any other key of the config. On a command line a mapping is *merged*
    into the existing one: ``"model.teacher.class_map={0:1,2:0}"`` (quoted for the shell) sets the map if there is none
    and adds to it otherwise; put ``model.teacher.class_map=null`` before it to replace the map.
    (``model.teacher.class_map.0=1`` would make the id a text.) Likewise ``model.losses={}`` changes nothing;
    ``model.losses=null`` and ``model.losses.NAME=null`` do.

    Args:
        model: the student's node, e.g. ``cfg.model``: RetinaNet, FCOS, GFL, ATSS or a subclass.
        teacher: the teacher's node, or the path or URL of its own config file: a LazyConfig (``.py``, or a dumped
            ``.yaml``), whose ``model`` is taken, or a yacs config (``.yaml``). The file is read when training starts
            (:func:`d2kd.config.teacher_file.build_teacher`).
        teacher_checkpoint: path or URL that Detectron2 can read; None if ``model.teacher.checkpoint`` is set later.
        method: a name in :data:`d2kd.methods.METHODS`, whose preset for the student's family is taken. If ``teacher``
            is a node of another family, crossed losses are those of its preset, since a crossed output is in the
            teacher's coding.
        losses: instead of ``method``, the losses: name -> node.

    Returns:
        a node of :class:`DistilledDetector`.

    Raises:
        ValueError: not exactly one of ``method`` and ``losses``, an unknown method, no preset for the student's
            family, a reference that cannot be resolved, or a path that is no config file's.
        TypeError: ``model`` is no node of a detector that d2kd reads, or the teacher or a loss is already built.
    """
    if (method is None) == (losses is None):
        raise ValueError(f"distill() got method={method!r} and losses={losses!r}, expected exactly one of them.")
    student = _checked_node(model, "model")
    teacher_model = _teacher_model(teacher)
    nodes = _preset(method, student, teacher) if method is not None else losses or {}
    for name, loss in nodes.items():
        _refuse_built(loss, f"losses[{name!r}]", "its node, L(...)(...)", f"losses={{{name!r}: module, ...}}")
    return L(DistilledDetector)(
        student=student,
        teacher=dict(
            model=teacher_model,
            checkpoint=teacher_checkpoint,
            weights="model",
            input_format=None,
            class_map=None,
            precision="fp32",
            engine="folded",
            preflight="on",
        ),
        losses=nodes,
        input_format=_input_format(student),
        tap_projector_channels=None,
    )


def _input_format(student: DictConfig) -> str | None:
    """
    What ``model.input_format`` is: a reference to the student's own, of which a node that leaves it out gets the
    default of its constructor; of Detectron2's FCOS, which has none, the order that :func:`input_format_of` takes.
    None: not known, a function's or a constructor's that does not name it.
    """
    target = target_of(student)
    if student.get("input_format") is None and isinstance(target, type):
        constructors = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
        parameters = [signature(x).parameters for x in constructors]
        default = next((x["input_format"].default for x in parameters if "input_format" in x), None)
        is_known = constructors[0].__module__.partition(".")[0] in ("detectron2", "d2kd")
        if isinstance(default, str) and (is_known or "input_format" in parameters[0]):
            student.input_format = default
        elif default is None and is_known:
            return "L" if len(student.get("pixel_mean") or "BGR") == 1 else "BGR"
    return None if student.get("input_format") is None else "${.student.input_format}"


def with_method(model: DictConfig, method: str) -> DictConfig:
    """
    A distilled model node whose losses are those of another method; all else of it stays.

    Args:
        model: a node of :class:`DistilledDetector`, as of :func:`distill`; not changed. With "config" any node.
        method: a name in :data:`d2kd.methods.METHODS`, whose preset for the node's student and teacher is taken as
            :func:`distill` takes it; "alone": no losses, the undistilled student; "config": the node's own losses.

    Raises:
        ValueError: the node is not distilled, an unknown method, or no preset for the student's family.
        TypeError: the student's target is no class, or no detector that d2kd reads.
    """
    copy = deepcopy(model)
    if method == CONFIG:
        return copy
    if target_of(model) is not DistilledDetector:
        raise ValueError(
            f"model._target_ is {target_name(model)}, expected the model node that d2kd.distill() returns, whose "
            f"losses method={method!r} replaces: wrap the model with distill() in the config."
        )
    copy.losses = None if method == ALONE else _preset(method, copy.student, (copy.get("teacher") or {}).get("model"))
    return copy


def _preset(method: str, student: DictConfig, teacher: object) -> dict[str, DictConfig]:
    student_class = target_of(student)
    if not isinstance(student_class, type):
        raise TypeError(
            f"model._target_ is {target_name(student)}, expected the class of a detector, whose family decides the "
            f"preset of method={method!r}: give losses={{...}} instead of method."
        )
    teacher_class = target_of(teacher) if isinstance(teacher, DictConfig) else None
    # The family of a file, which is not read here, or of a function's result is not known.
    teacher_families = preset_families(teacher_class) if isinstance(teacher_class, type) else ()
    return get_losses(method, *preset_families(student_class), teacher=teacher_families)


def _teacher_model(teacher: DictConfig | str | os.PathLike[str]) -> DictConfig:
    if isinstance(teacher, (str, os.PathLike)):
        return teacher_node(os.fspath(teacher), "distill()'s teacher")
    _refuse_built(teacher, "teacher", "its node, or the path of its config file", "teacher={'model': module}")
    return _checked_node(teacher, "teacher")


def _checked_node(node: DictConfig, name: str) -> DictConfig:
    if not isinstance(node, DictConfig) or "_target_" not in node:
        or_path = " or the path of a config file" if name == "teacher" else ""
        raise TypeError(f"Expected {name} to be a model node with a _target_{or_path}, found {type(node).__name__}.")
    target = target_of(node)
    if target is DistilledDetector:
        whose = "teacher" if name == "teacher" else "student"
        raise ValueError(
            f"{name} is distilled already, expected the node of the {whose} alone: give it {name}.student."
        )
    if isinstance(target, type):
        try:
            check_class(target)
        except TypeError as error:
            raise TypeError(f"distill()'s {name}: {error}") from error
    return self_contained(node, name, f"{name} moves under model.{'student' if name == 'model' else 'teacher.model'}")


def _refuse_built(value: object, name: str, expected: str, argument: str) -> None:
    if isinstance(value, nn.Module):
        raise TypeError(
            f"distill() got a {type(value).__name__} that is already built as {name}, but a config must stay text, to "
            f"be saved and overridden: give {expected}; or call DistilledDetector(..., {argument}) yourself."
        )
