"""A teacher that is given by the path of its own config file, yacs or LazyConfig."""

from __future__ import annotations

import os
from typing import Any

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from d2kd.modeling import DistilledDetector, get_adapter
from d2kd.modeling.adapters import family_of
from d2kd.modeling.detectors import add_atss_config, add_gfl_config

__all__ = ["build_registered", "build_teacher", "teacher_node"]

#: Where the path stands.
_KEY = "model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG)"
_DISTILLED = DistilledDetector.__name__


def teacher_node(config: str, key: str) -> DictConfig:
    """
    A node that builds the teacher of a config file. The file is not read here, so it may be absent in evaluation.

    Args:
        config: see :func:`build_teacher`.
        key: where it was given, for the message.

    Raises:
        ValueError: ``config`` has the name of no config file.
    """
    if os.path.splitext(config)[1] not in (".yaml", ".yml", ".py"):
        raise ValueError(
            f"{key} is {config!r}, expected a yacs config (.yaml) or a LazyConfig (.py, or a dumped .yaml)."
        )
    return L(build_teacher)(config=config)


def build_teacher(config: str) -> DenseDetector:
    """
    The detector of a config file, on the CPU and not loaded; of a distilled run, that run's student.

    Args:
        config: path or URL of a yacs ``.yaml`` (keys of other projects are taken as they stand), or of a LazyConfig
            ``.py`` or dumped ``.yaml``, whose ``model`` is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file without keys, a LazyConfig without a model, or a yacs config whose model is not registered
            or no dense detector.
        TypeError: a model that no adapter reads.
    """
    path = PathManager.get_local_path(config)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_KEY} is {config!r}, but there is no such file.")
    lazy = LazyConfig.load(path)  # of a yacs file, no more than its text
    is_mapping = isinstance(lazy, DictConfig) and len(lazy) > 0
    if path.endswith(".py") or (is_mapping and "model" in lazy):
        return _build_lazy(lazy, f"{_KEY} is {config!r}")
    if not is_mapping:
        raise ValueError(f"{_KEY} is {config!r}, a file without keys.")
    cfg = get_cfg()
    for add_keys in (add_gfl_config, add_atss_config):
        add_keys(cfg)
    cfg.set_new_allowed(True)
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cpu"  # the student's device is Teacher.load's to follow
    name, where = cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE"
    if name == _DISTILLED:
        name = cfg.MODEL.get("DISTILLATION", {}).get("STUDENT_META_ARCHITECTURE", "")
        where = "MODEL.DISTILLATION.STUDENT_META_ARCHITECTURE"
    detector = build_registered(cfg, name, f"{_KEY} is {config!r}, in which {where}")
    if getattr(detector, "input_format", None) is None:
        detector.input_format = cfg.INPUT.FORMAT  # what its images were read in, if the class does not keep it
    return detector


def build_registered(cfg: CfgNode, name: str, key: str) -> DenseDetector:
    """
    The detector that a yacs config would be of with ``MODEL.META_ARCHITECTURE: name``.

    Args:
        cfg: a whole config; left as it is.
        name: a name in Detectron2's registry.
        key: where the name stood, for messages.

    Raises:
        ValueError: it is not registered, or is no dense detector that d2kd reads.
        TypeError: what it builds is none.
    """
    known = [entry for entry, target in META_ARCH_REGISTRY if _may_be_read(target)]
    if name not in known:
        raise ValueError(
            f"{key} is {name!r}, expected a registered dense detector that d2kd reads, of {', '.join(known)}."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = name
    detector = build_model(cfg)
    _check_readable(detector, f"{key} is {name!r}")
    return detector


def _build_lazy(cfg: DictConfig, what: str) -> DenseDetector:
    model = cfg.get("model")
    if not isinstance(model, DictConfig) or "_target_" not in model:
        found = ", ".join(map(str, cfg)) or "nothing"
        raise ValueError(f"{what}, a LazyConfig without a `model` node to instantiate; it has {found}.")
    # The nodes stay where they are: references in them to the rest of that config hold.
    if (locate(model._target_) if isinstance(model._target_, str) else model._target_) is DistilledDetector:
        model = model.student
    detector = instantiate(model)
    _check_readable(detector, what)
    return detector


def _check_readable(detector: Any, what: str) -> None:
    try:
        get_adapter(detector)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from error


def _may_be_read(target: Any) -> bool:
    """Whether a registered meta-architecture may be a detector of a family with an adapter."""
    if not isinstance(target, type):
        return target.__name__ != _DISTILLED  # another function: what it builds is checked
    try:
        family_of(target)
    except TypeError:
        return False
    return True
