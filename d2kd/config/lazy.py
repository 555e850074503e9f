"""Wrap a LazyConfig model node, and find the packaged configs."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from d2kd.config.teacher_file import teacher_node
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.adapters import family_of

__all__ = ["distill", "get_config", "get_detectron2_config", "preset_families"]


def get_config(path: str) -> DictConfig:
    """
    Load a config that comes with d2kd.

    Args:
        path: relative to d2kd's configs, e.g. ``"digits/fcos_crosskd.py"``.

    Raises:
        FileNotFoundError: no such config.
    """
    return _load_packaged("d2kd", "configs", path)


def get_detectron2_config(path: str) -> DictConfig:
    """
    Load a LazyConfig that comes with Detectron2 (``detectron2.model_zoo`` itself needs an old setuptools).

    Args:
        path: relative to its configs, e.g. ``"common/models/retinanet.py"``.

    Raises:
        FileNotFoundError: no such config.
    """
    return _load_packaged("detectron2", "model_zoo/configs", path)


def _load_packaged(package: str, folder: str, path: str) -> DictConfig:
    with importlib.resources.as_file(importlib.resources.files(package) / folder) as root:
        if not (root / path).is_file():
            known = sorted(str(p.relative_to(root)) for p in root.rglob("*.py"))
            raise FileNotFoundError(f"{package} has no config {path!r}; it has {', '.join(known)}.")
        return LazyConfig.load(str(root / path))


def distill(
    model: DictConfig,
    *,
    teacher: DictConfig | str | os.PathLike,
    teacher_checkpoint: str | None = None,
    method: str | None = None,
    losses: Mapping[str, Any] | None = None,
) -> DictConfig:
    """
    Wrap a model node of a LazyConfig so that it is distilled; the rest of the config stays as it is.

    The node moves under ``model.student``; references in it to the rest of the config are resolved here, since they
    would point elsewhere from there. All keys of the result can be changed like any other of the config's. On a command
    line a mapping is *merged* into what is there: ``"model.teacher.class_map={0:1,2:0}"`` (quoted, for the shell; ids
    stay integers, which ``model.teacher.class_map.0=1`` would make text) sets the map where there was none, but adds to
    one that the config has; ``model.teacher.class_map=null`` before it removes that. Likewise ``model.losses={}``
    changes nothing; ``model.losses=null`` and ``model.losses.NAME=null`` do.

    Args:
        model: the student's node, e.g. ``cfg.model``: RetinaNet, FCOS, GFL, ATSS or a subclass.
        teacher: the teacher's node, or the path or URL of its own config file: a LazyConfig (``.py``, or a dumped
            ``.yaml``), whose ``model`` is taken, or a yacs config (``.yaml``). The file is read when training starts
            (:func:`d2kd.config.teacher_file.build_teacher`).
        teacher_checkpoint: path or URL that Detectron2 can read; None if ``model.teacher.checkpoint`` is set later.
        method: name of a preset of :data:`d2kd.methods.METHODS`, that of the student's family; crossed losses are those
            of the teacher's where ``teacher`` is a node, since a crossed output is in the teacher's coding ...
        losses: ... or the losses themselves, name -> node.

    Returns:
        a node of :class:`DistilledDetector`.

    Raises:
        ValueError: not exactly one of ``method`` and ``losses``, an unknown method, no preset for the student's
            family, a reference that cannot be resolved, or a path of no config file.
        TypeError: ``model`` is no node of a detector that d2kd reads, or the teacher or a loss is already built.
    """
    if (method is None) == (losses is None):
        raise ValueError(f"distill() got method={method!r} and losses={losses!r}, expected exactly one of them.")
    student = _self_contained(model, "model")
    if method is not None:
        losses = _preset(method, student, teacher)
    for name, loss in losses.items():
        _refuse_built(loss, f"losses[{name!r}]", "its node, L(...)(...)", f"losses={{{name!r}: module, ...}}")
    return L(DistilledDetector)(
        student=student,
        teacher=dict(model=_teacher_model(teacher), checkpoint=teacher_checkpoint, input_format=None, class_map=None),
        losses=losses,
        input_format=None,
        tap_projector_channels=None,
    )


def _preset(method: str, student: DictConfig, teacher: Any) -> dict[str, DictConfig]:
    teacher_class = _target_of(teacher) if isinstance(teacher, DictConfig) else None
    # Of a file, which is not read here, or of a function that builds, the family is not known.
    theirs = preset_families(teacher_class) if isinstance(teacher_class, type) else ()
    return get_losses(method, *preset_families(_target_of(student)), teacher=theirs)


def _target_of(node: DictConfig) -> Any:
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def _teacher_model(teacher: DictConfig | str | os.PathLike) -> DictConfig:
    if isinstance(teacher, (str, os.PathLike)):
        return teacher_node(os.fspath(teacher), "distill()'s teacher")
    _refuse_built(teacher, "teacher", "its node, or the path of its config file", "teacher={'model': module}")
    return _self_contained(teacher, "teacher")


def _refuse_built(value: Any, name: str, expected: str, argument: str) -> None:
    if isinstance(value, nn.Module):
        raise TypeError(
            f"distill() got a {type(value).__name__} that is already built as {name}, but a config must stay text, to "
            f"be saved and overridden: give {expected}; or call DistilledDetector(..., {argument}) yourself."
        )


def preset_families(detector_class: type) -> list[str]:
    """
    Names of the classes that a preset may be for: the detector's own, up to the one that an adapter reads.

    Raises:
        TypeError: no adapter reads it.
    """
    names = [cls.__name__ for cls in detector_class.__mro__]
    return names[: names.index(family_of(detector_class)) + 1]


def _self_contained(node: DictConfig, name: str) -> DictConfig:
    """A copy of ``node`` in which every interpolation that leads out of it is replaced by its value."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        or_path = " or the path of a config file" if name == "teacher" else ""
        raise TypeError(f"Expected {name} to be a model node with a _target_{or_path}, found {type(node).__name__}.")
    return _detached(node, name, f"{name} moves under model.{'student' if name == 'model' else 'teacher.model'}")


def _detached(node: DictConfig | ListConfig, name: str, move: str) -> DictConfig | ListConfig:
    copy = deepcopy(node)
    copy._set_parent(None)
    for path, depth, child in _interpolations(node):
        references = OmegaConf.to_container(child._get_parent(), resolve=False)[child._key()]
        if not _leads_out(references, depth):
            continue
        try:
            value = child._dereference_node()
        except OmegaConfBaseException as error:
            raise ValueError(
                f"{name}.{path} is {references!r}, which cannot be resolved before {move}: give it a value."
            ) from error
        # A node brings references of its own, which mean something only where it stands.
        is_node = isinstance(value, (DictConfig, ListConfig))
        value = _detached(value, f"{name}.{path}", move) if is_node else deepcopy(value)
        OmegaConf.update(copy, path, value, merge=False, force_add=True)
    return copy


def _interpolations(node: DictConfig | ListConfig, prefix: str = "", depth: int = 1):
    """(path, number of containers above it inside the model, child node) of every interpolation below ``node``."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node.keys())
    for key in keys:
        child = node._get_node(key)
        path = f"{prefix}[{key}]" if isinstance(node, ListConfig) else f"{prefix}.{key}" if prefix else str(key)
        if child is None:
            continue
        if child._is_interpolation():
            yield path, depth, child
        elif isinstance(child, (DictConfig, ListConfig)) and not child._is_none():
            yield from _interpolations(child, path, depth + 1)


def _leads_out(reference: str, depth: int) -> bool:
    """Whether any ``${...}`` of the value is absolute, or climbs out of the model with its dots."""
    for inside in (part.split("}")[0].strip() for part in reference.split("${")[1:]):
        if ":" in inside:  # a resolver such as ${oc.env:X} does not depend on the place
            continue
        dots = len(inside) - len(inside.lstrip("."))
        if dots == 0 or dots > depth:
            return True
    return False
