"""A teacher given by the path of its own config file, yacs or LazyConfig."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from torch import nn

from d2kd.config.nodes import target_of
from d2kd.modeling import DistilledDetector, get_adapter
from d2kd.modeling.adapters import family_of
from d2kd.modeling.detectors import add_atss_config, add_gfl_config

__all__ = ["build_registered", "build_teacher", "teacher_node"]

#: The config field of the path, for messages.
_KEY = "model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG)"
_DISTILLED = DistilledDetector.__name__


def teacher_node(config: str, key: str) -> DictConfig:
    """
    A node that builds the teacher of a config file. The file is not read here, so it may be absent in evaluation.

    Args:
        config: see :func:`build_teacher`.
        key: where it was given, for the message.

    Raises:
        ValueError: the name does not end in .yaml, .yml or .py.
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
        config: path or URL of a yacs ``.yaml`` (keys that a project added are accepted), or of a LazyConfig ``.py`` or
            dumped ``.yaml``, whose ``model`` is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no keys, the LazyConfig has no model, or the yacs config's model is not registered or
            is no dense detector.
        TypeError: no adapter reads the model.
    """
    path = PathManager.get_local_path(config)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{_KEY} is {config!r}, but there is no such file.")
    lazy = LazyConfig.load(path)  # of a yacs file, this reads the text alone
    is_mapping = isinstance(lazy, DictConfig) and len(lazy) > 0
    if path.endswith(".py") or (is_mapping and "model" in lazy):
        return _build_lazy(lazy, f"{_KEY} is {config!r}")
    if not is_mapping:
        raise ValueError(f"{_KEY} is {config!r}, a file without keys.")
    cfg = get_cfg()
    add_gfl_config(cfg)
    add_atss_config(cfg)
    cfg.set_new_allowed(True)
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cpu"  # Teacher.load moves it to the student's device
    name, where = cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE"
    if name == _DISTILLED:
        name = cfg.MODEL.get("DISTILLATION", {}).get("STUDENT_META_ARCHITECTURE", "")
        where = "MODEL.DISTILLATION.STUDENT_META_ARCHITECTURE"
    detector = build_registered(cfg, name, f"{_KEY} is {config!r}, in which {where}")
    if getattr(detector, "input_format", None) is None:  # a detector that does not keep the order of its images
        detector.input_format = cfg.INPUT.FORMAT
    return detector


def build_registered(cfg: CfgNode, name: str, key: str) -> DenseDetector:
    """
    The detector that a yacs config describes if ``MODEL.META_ARCHITECTURE`` is ``name``.

    Args:
        cfg: a whole config; not changed.
        name: a name in Detectron2's registry.
        key: where the name was given, for messages.

    Raises:
        ValueError: ``name`` is not registered, or is the name of no dense detector that d2kd reads.
        TypeError: ``name`` is a function that builds no such detector.
    """
    known = [entry for entry, builder in META_ARCH_REGISTRY if entry != _DISTILLED and _may_be_read(builder)]
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
    # The nodes stay where they are, so their references to the rest of that config hold.
    if target_of(model) is DistilledDetector:
        model = model.student
    detector = instantiate(model)
    _check_readable(detector, what)
    return detector


def _check_readable(detector: DenseDetector, what: str) -> None:
    try:
        get_adapter(detector)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from error


def _may_be_read(builder: Callable[[CfgNode], nn.Module]) -> bool:
    """Whether a registered class or function may build a detector that an adapter reads."""
    if not isinstance(builder, type):
        return True  # a function: what it builds is checked
    try:
        family_of(builder)
    except TypeError:
        return False
    return True
