"""Config files: those of a person, those that come with d2kd, those that come with Detectron2."""

from __future__ import annotations

import importlib.resources
import os
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from d2kd.config.lazy import CONFIG, with_method
from d2kd.config.nodes import load_lazy
from d2kd.config.overrides import READ, apply_overrides
from d2kd.config.untrusted import check_run, read_yaml

__all__ = ["config_path", "get_config", "get_detectron2_config", "load_config"]

#: What d2kd reads of ``train`` and Detectron2 does not: a config that lacks one has that of configs/common/train.py.
_OWN_TRAIN_KEYS = ("seed", "amp.dtype", "clip_grad", "accumulate", "ema", "trainer", "best_metric", "writers")


def load_config(file: str, overrides: Sequence[str] = (), *, method: str = CONFIG) -> DictConfig:
    """
    Load a LazyConfig as the commands do. A ``train`` made for Detectron2's lazyconfig_train_net.py is enough: what d2kd
    reads beyond it has its defaults.

    Args:
        file: see :func:`config_path`.
        overrides: ``key=value``, as of Detectron2's tools, or ``+key=value`` for a new key; applied last.
        method: what ``model.losses`` become, see :func:`with_method`.

    Raises:
        FileNotFoundError: there is no such file, and no packaged config of that name.
        ValueError: a file that fails when it is read, or has no model; see also
            :func:`d2kd.config.overrides.apply_overrides` and :func:`with_method`.
    """
    cfg = _read(file)
    _add_defaults(cfg)
    if method != CONFIG:
        cfg.model = with_method(cfg.model, method)
    known = _train_keys()
    apply_overrides(cfg, overrides, {"train": known} if "train" in cfg else {})
    _check_names(cfg.get("train"), known, "train")
    return cfg


def _check_names(node: object, known: Mapping[str, Any], path: str) -> None:
    """Refuse a key that nothing reads, and that has nearly the name of one that is read and a value of its type."""
    if not isinstance(node, DictConfig):
        return
    for name in map(str, node):
        near = get_close_matches(name, known, 1, 0.85)
        if name not in known and near and _kind(node[name]) == _kind(known[near[0]]):
            raise ValueError(f"{path}.{name} is in the config, but nothing reads it: did you mean {path}.{near[0]}?")
        if isinstance(known.get(name), Mapping):
            _check_names(node[name], known[name], f"{path}.{name}")


def _kind(value: object) -> str:
    if isinstance(value, Mapping | DictConfig):
        return "mapping"
    return "number" if isinstance(value, int | float) else type(value).__name__


@cache  # files of d2kd itself
def _default_train() -> DictConfig:
    return get_config("common/train.py").train


@cache
def _train_keys() -> Mapping[str, Any]:
    """Every key of ``train`` that is read, by d2kd or by Detectron2's ``default_setup``, with a value of its type."""
    keys = OmegaConf.to_container(_default_train())
    assert isinstance(keys, dict)
    optional = {
        "clip_grad": {"max_norm": 1.0, "norm_type": 2.0},
        "cudnn_benchmark": False,
        "ema": {"decay": 0.999},
        "float32_precision": "",
    }
    return {**keys, **optional}


def _read(file: str) -> DictConfig:
    path = config_path(file)
    if not path.endswith((".py", ".yaml", ".yml")):
        raise ValueError(f"{file} is no config, expected a LazyConfig: a .py, or a .yaml that was dumped of one.")
    try:
        cfg = _read_yaml(path) if path.endswith((".yaml", ".yml")) else load_lazy(path)
    except Exception as error:  # whatever a person's file does
        *_, (last, _) = traceback.walk_tb(error.__traceback__)
        if (last.f_globals.get("__package__") or "").partition(".")[0] == "d2kd":
            raise  # its message says all
        raise ValueError(f"{file} cannot be read: {_reason(error)}") from error
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        yacs = isinstance(cfg, DictConfig) and "MODEL" in cfg
        hint = "; a yacs config is distilled by the train_net.py that reads it, see docs/embedding.md" if yacs else ""
        raise ValueError(f"{file} has no model, expected a LazyConfig with a model node, L(CLASS)(...){hint}.")
    return cfg


def _read_yaml(path: str) -> Any:
    """A config that was dumped, such as a run's config.yaml, without running code of it."""
    content = read_yaml(path)
    if isinstance(content, dict) and "model" in content:
        try:
            check_run({key: content.get(key) for key in READ})
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    return OmegaConf.create(content, flags={"allow_objects": True}) if isinstance(content, dict) else content


def _add_defaults(cfg: DictConfig) -> None:
    absent = object()
    if isinstance(cfg.get("train"), DictConfig):
        for key in _OWN_TRAIN_KEYS:
            parent = cfg.train.get(key.partition(".")[0], {}) if "." in key else {}
            if isinstance(parent, (dict, DictConfig)) and OmegaConf.select(cfg.train, key, default=absent) is absent:
                OmegaConf.update(cfg.train, key, OmegaConf.select(_default_train(), key), force_add=True)


def _reason(error: Exception) -> str:
    """What failed, and the line of the config, or of the one that it imports, where it did."""
    if isinstance(error, SyntaxError) and isinstance(cause := error.__cause__, SyntaxError):
        return f"{error} (line {cause.lineno}: {cause.msg})"  # Detectron2 names the file, Python the line
    places = [
        f"{frame.f_code.co_filename}, line {line}: "
        for frame, line in traceback.walk_tb(error.__traceback__)
        if (frame.f_globals.get("__package__") or "").startswith("detectron2._cfg_loader")
    ]
    text = " ".join(str(error).split())
    return f"{places[-1] if places else ''}{type(error).__name__}: {text}"


def config_path(file: str) -> str:
    """
    The path of a config file.

    Args:
        file: a path, or the name of a config that comes with d2kd, e.g. ``"digits/fcos_crosskd.py"``. A path that
            exists is taken first.

    Raises:
        FileNotFoundError: there is neither; the nearest names are suggested.
    """
    if os.path.isfile(file):
        return file
    folder = _folder("d2kd", "configs")
    if (folder / file).is_file():
        return str(folder / file)
    beside = [str(path) for path in Path(file).parent.glob("*.*")]
    near = get_close_matches(file, [*beside, *_names(folder)])
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise FileNotFoundError(f"There is no file {file!r}, and d2kd has no config of that name{hint}")


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
    root = _folder(package, folder)
    if not (root / path).is_file():
        raise FileNotFoundError(f"{package} has no config {path!r}; it has {', '.join(_names(root))}.")
    return load_lazy(str(root / path))


def _folder(package: str, folder: str) -> Path:
    return Path(str(importlib.resources.files(package) / folder))  # neither package is ever run from a zip file


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
