"""Distillation in Detectron2's yacs configs: the keys, and how they become arguments of DistilledDetector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from d2kd.config import preset_families
from d2kd.losses import DistillationLoss
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector, get_adapter
from d2kd.modeling.adapters import family_of
from d2kd.modeling.detectors import add_atss_config, add_gfl_config

__all__ = ["add_distillation_config", "build_teacher", "constructor_arguments"]

_NODE = "MODEL.DISTILLATION"
_DISTILLED = DistilledDetector.__name__


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
    # Channel order that the teacher was trained with, "BGR" or "RGB"; "": its own input_format, else "BGR".
    node.TEACHER_INPUT_FORMAT = ""


def constructor_arguments(cfg: CfgNode) -> dict[str, Any]:
    """
    The arguments of :class:`DistilledDetector`; the student is built, the teacher is not.

    Args:
        cfg: a whole config with ``MODEL.DISTILLATION``; left as it is.

    Raises:
        ValueError: no ``MODEL.DISTILLATION``, a student that is no detector that d2kd reads, an unknown method, a
            method without a teacher, or losses that cannot be changed so. Each message names the key.
        TypeError: the student overrides what d2kd replaces.
    """
    if "DISTILLATION" not in cfg.MODEL:
        raise ValueError(f"The config has no {_NODE}: call d2kd.add_distillation_config(cfg) before it is merged.")
    node = cfg.MODEL.DISTILLATION
    # First of all: a baseline of this seed starts from the same weights.
    student = _build(cfg, node.STUDENT_META_ARCHITECTURE, f"{_NODE}.STUDENT_META_ARCHITECTURE")
    arguments = {"student": student, "input_format": cfg.INPUT.FORMAT}
    if not node.METHOD:
        return arguments
    for key in ("TEACHER_CONFIG", "TEACHER_WEIGHTS"):
        if not node[key]:
            raise ValueError(
                f"{_NODE}.{key} is {node[key]!r}, but {_NODE}.METHOD is {node.METHOD!r}: give the path, or set METHOD "
                'to "" to train the student alone.'
            )
    if os.path.splitext(node.TEACHER_CONFIG)[1] not in (".yaml", ".yml", ".py"):
        raise ValueError(
            f"{_NODE}.TEACHER_CONFIG is {node.TEACHER_CONFIG!r}, expected a yacs config (.yaml) or a LazyConfig (.py)."
        )
    return {
        **arguments,
        "losses": _build_losses(type(student), node.METHOD, node.LOSSES or ()),
        "teacher": {
            "model": L(build_teacher)(config=node.TEACHER_CONFIG),
            "checkpoint": node.TEACHER_WEIGHTS,
            "input_format": node.TEACHER_INPUT_FORMAT or None,
        },
    }


def build_teacher(config: str) -> DenseDetector:
    """
    The detector of a config file, on the CPU and not loaded; of a distilled run, that run's student.

    Args:
        config: path or URL of a yacs ``.yaml`` (keys of other projects are taken as they stand), or of a LazyConfig
            ``.py`` or dumped ``.yaml``, whose ``model`` is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its model is no detector that d2kd reads, or a LazyConfig has none.
    """
    key = f"{_NODE}.TEACHER_CONFIG"
    path = PathManager.get_local_path(config)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{key} is {config!r}, but there is no such file.")
    if path.endswith(".py") or "model" in CfgNode.load_yaml_with_base(path, allow_unsafe=True):
        return _build_lazy(LazyConfig.load(path), f"{key} ({config})")
    cfg = get_cfg()
    for add_keys in (add_gfl_config, add_atss_config, add_distillation_config):
        add_keys(cfg)
    cfg.set_new_allowed(True)
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cpu"  # the student's device is Teacher.load's to follow
    name, where = cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE"
    if name == _DISTILLED:
        name, where = cfg.MODEL.DISTILLATION.STUDENT_META_ARCHITECTURE, f"{_NODE}.STUDENT_META_ARCHITECTURE"
    return _build(cfg, name, f"{key} ({config}): {where}")


def _build_lazy(cfg: DictConfig, what: str) -> DenseDetector:
    if "model" not in cfg:
        raise ValueError(f"{what} is a LazyConfig without `model`; it has {', '.join(map(str, cfg)) or 'nothing'}.")
    # The nodes stay where they are: references in them to the rest of that config hold.
    model = cfg.model
    target = model.get("_target_")
    if (locate(target) if isinstance(target, str) else target) is DistilledDetector:
        model = model.student
    return instantiate(model)


def _build(cfg: CfgNode, name: str, key: str) -> DenseDetector:
    """The detector that ``cfg`` would be of with ``MODEL.META_ARCHITECTURE: name``; ``key`` is where the name stood."""
    known = [entry for entry, target in META_ARCH_REGISTRY if _may_be_read(target)]
    if name not in known:
        raise ValueError(
            f"{key} is {name!r}, expected a registered dense detector that d2kd reads, of {', '.join(known)}."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = name
    detector = build_model(cfg)
    try:
        get_adapter(detector)
    except TypeError as error:
        raise TypeError(f"{key} is {name!r}: {error}") from error
    return detector


def _may_be_read(target: Any) -> bool:
    """Whether a registered meta-architecture may be a detector of a family with an adapter."""
    if not isinstance(target, type):
        return True  # a function: what it builds is checked
    try:
        family_of(target)
    except TypeError:
        return False
    return True


def _build_losses(detector_class: type, method: str, changes: Sequence[str]) -> dict[str, DistillationLoss]:
    try:
        losses = get_losses(method, *preset_families(detector_class))
    except ValueError as error:
        raise ValueError(f"{_NODE}.METHOD is {method!r}. {error}") from error
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
