"""A teacher given by the path of its own config file, yacs or LazyConfig."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import IO

import yaml
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2kd.checkpoint import forget_download, local_path
from d2kd.config.nodes import load_lazy, target_of
from d2kd.config.registered import DISTILLED, build_registered, check_readable
from d2kd.config.untrusted import check_targets, read_yaml
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors import add_atss_config, add_fcos_config, add_gfl_config

__all__ = ["build_teacher", "teacher_node"]

#: The config field of the path, for messages.
_KEY = "model.teacher.model.config (in a yacs config: MODEL.DISTILLATION.TEACHER_CONFIG)"


def teacher_node(config: str, key: str, trust: Sequence[str] = ()) -> DictConfig:
    """
    A node that builds the teacher of a config file. The file is not read here, so it may be absent in evaluation.

    Args:
        config, trust: see :func:`build_teacher`.
        key: where it was given, for the message.

    Raises:
        ValueError: the name does not end in .yaml, .yml or .py.
    """
    if os.path.splitext(config)[1] not in (".yaml", ".yml", ".py"):
        raise ValueError(
            f"{key} is {config!r}, expected a yacs config (.yaml) or a LazyConfig (.py, or a dumped .yaml)."
        )
    return L(build_teacher)(config=config, trust=list(trust))


def build_teacher(config: str, trust: Sequence[str] = (), *, key: str = _KEY) -> DenseDetector:
    """
    The detector of a config file, on the CPU and not loaded; of a distilled run, that run's student.

    Args:
        config: path or URL of a yacs ``.yaml`` (keys that a project added are accepted) or of a LazyConfig's dumped
            ``.yaml``, which run no code beside that of networks of known packages; or path of a LazyConfig ``.py``,
            which is a program. Of a LazyConfig its ``model`` is taken.
        trust: further packages whose classes and functions a dumped ``.yaml`` may name, such as one's own project.
        key: where the path was given, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no keys, it names what is not trusted, the LazyConfig has no model, or the yacs
            config's model is not registered or is no dense detector.
        TypeError: no adapter reads the model.
    """
    what = f"{key} is {config!r}"
    if config.endswith(".py") and "://" in config:
        raise ValueError(f"{what}, a program, and no code from elsewhere is run: read it and give the path of a copy.")
    try:
        path = local_path(config)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what}, but there is no such file.")
    if path.endswith(".py"):
        try:
            cfg = load_lazy(path)
        except Exception as error:  # whatever a program does
            raise ValueError(f"{what}, which cannot be read: {type(error).__name__}: {error}.") from error
        return _build_lazy(cfg, what, None)
    try:
        content = read_yaml(path, trust)
    except ValueError as error:
        raise ValueError(f"{key}: {error}{forget_download(config, path)}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{what}, a file without keys.{forget_download(config, path)}")
    if "model" in content:
        return _build_lazy(OmegaConf.create(content, flags={"allow_objects": True}), what, trust)
    known = get_cfg()
    for add_config in (add_gfl_config, add_atss_config, add_fcos_config):
        add_config(known)
    cfg = _SafeNode(known)
    cfg.set_new_allowed(True)
    try:
        cfg.merge_from_file(path)
    except (ValueError, OSError) as error:  # of a file that it is based on
        raise ValueError(f"{what}: {error}") from error
    cfg.MODEL.DEVICE = "cpu"  # Teacher.load moves it to the student's device
    name, where = cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE"
    if name == DISTILLED:
        name = cfg.MODEL.get("DISTILLATION", {}).get("STUDENT_META_ARCHITECTURE", "")
        where = "MODEL.DISTILLATION.STUDENT_META_ARCHITECTURE"
    detector = build_registered(cfg, name, f"{what}, in which {where}")
    if getattr(detector, "input_format", None) is None:  # a detector that does not keep the order of its images
        detector.input_format = cfg.INPUT.FORMAT
    return detector


class _SafeNode(CfgNode):
    """Reads a file and those that it is based on without running code of theirs."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        content = read_yaml(filename)
        try:
            check_targets(content)
        except ValueError as error:
            raise ValueError(f"{filename}: {error}") from error
        return io.StringIO(yaml.safe_dump(content))


def _build_lazy(cfg: DictConfig, what: str, trust: Sequence[str] | None) -> DenseDetector:
    """The model of a LazyConfig; with ``trust`` None, of one that may name anything."""
    model = cfg.get("model")
    if not isinstance(model, DictConfig) or "_target_" not in model:
        found = ", ".join(map(str, cfg)) or "nothing"
        raise ValueError(f"{what}, a LazyConfig without a `model` node to instantiate; it has {found}.")
    try:
        if trust is not None:
            check_targets({"_target_": model._target_}, trust)  # before it is imported
        # The nodes stay where they are, so their references to the rest of that config hold.
        if target_of(model) is DistilledDetector:
            model = model.student
        if trust is not None:
            check_targets(OmegaConf.to_container(model, resolve=True), trust)
    except (OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error
    detector = instantiate(model)
    check_readable(detector, what)
    return detector
