"""Config files from elsewhere: YAML, and nodes that may build a network or a run, and run no code beside that."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager
from detectron2.utils.registry import locate

__all__ = ["check_run", "check_targets", "read_yaml"]

#: Packages that a file may name; and those of their modules that make networks.
_PACKAGES = ("d2kd", "detectron2", "fvcore", "timm", "torch", "torchvision")
_NETWORKS = (
    *("d2kd.modeling", "detectron2.layers", "detectron2.modeling", "fvcore.nn", "timm", "torch.nn"),
    *("torchvision.models", "torchvision.ops"),
)
#: What a run has beside networks: data, losses, optimizers, schedules, evaluators.
_RUN = (
    *("d2kd.data", "d2kd.losses", "d2kd.regions", "detectron2.data", "detectron2.evaluation", "detectron2.solver"),
    *("fvcore.common.param_scheduler", "torch.optim"),
)
_TRUST = "model.teacher.model.trust={} (in a yacs config: MODEL.DISTILLATION.TEACHER_TRUST)"

#: What an arithmetic expression is made of: no calls, no attributes.
_ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.ListComp, ast.comprehension),
    *(ast.Name, ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop),
)


def read_yaml(path: str, trust: Sequence[str] = ()) -> Any:
    """
    The content of a YAML file, read without running code of it.

    Beside plain YAML it may have what dumped configs have: tuples, classes and ``functools.partial`` of networks,
    dataclasses such as ``ShapeSpec``, and the arithmetic of Detectron2's ``Base-RetinaNet.yaml``. In the place of other
    objects it has what :func:`check_targets` refuses: a run's config may have some where nobody needs them.

    Args:
        path: anything that Detectron2 can read.
        trust: further packages whose classes and functions it may name.

    Raises:
        ValueError: it is no YAML.
    """
    with PathManager.open(path) as file:
        try:
            loader = _Loader(file, trust)
            return loader.get_single_data()
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML without code: {' '.join(str(error).split())}") from error
        except Exception as error:  # of a value that cannot be made
            raise ValueError(f"{path}: {error}") from error


def check_targets(content: Any, trust: Sequence[str] = ()) -> None:
    """
    Check every object and every ``_target_`` before anything is instantiated.

    Args:
        content: nested dicts and lists, with their interpolations resolved.
        trust: see :func:`read_yaml`.

    Raises:
        ValueError: one is no part of a network, nor of a package that is trusted.
    """
    if isinstance(content, _Refused):
        raise ValueError(content.reason)
    if isinstance(content, dict):
        if isinstance(target := content.get("_target_"), str):
            _trusted(target, trust)
        check_targets(list(content.values()), trust)
    elif isinstance(content, (list, tuple)):
        for value in content:
            check_targets(value, trust)


def _trusted(name: str, trust: Iterable[str]) -> Any:
    """The object of a dotted name; its package is imported only if it is trusted."""
    root = name.partition(".")[0]
    last = name.rpartition(".")[2]
    # What Detectron2 names the code of a config file, and of one that it imports.
    if name == f"builtins.{last}" and not hasattr(builtins, last) or name.startswith("detectron2._cfg_loader"):
        raise ValueError(
            f"it names {last}, which a config file defines, so that this dumped config does not hold it: give the "
            f"LazyConfig .py that it was made from, or move {last} into a module that can be imported."
        )
    if root in trust:
        return locate(name)
    found = locate(name) if root in _PACKAGES else None
    # Of timm classes alone: its functions read files.
    if not _lies_in(found, _NETWORKS) or (root == "timm" and not isinstance(found, type)):
        raise ValueError(
            f"it names {name}, expected networks of {', '.join(_NETWORKS)}, since a config from elsewhere must run no "
            f"other code: if you trust it and this package, set {_TRUST.format(f'[{root}]')}."
        )
    return found


def check_run(content: Any) -> None:
    """
    Check every object and every ``_target_`` of a whole run's config before anything of it is instantiated.

    Args:
        content: see :func:`check_targets`.

    Raises:
        ValueError: one is neither a part of a run that known packages have, nor code of one's own, which is no
            installed package.
    """
    if isinstance(content, _Refused):
        raise ValueError(content.reason)
    if isinstance(content, dict):
        target = content.get("_target_")
        if isinstance(target, str) and not (_is_own(target) or _lies_in(_located(target), (*_NETWORKS, *_RUN))):
            raise ValueError(
                f"it names {target}, and of a YAML file parts of detectors, data and schedules alone are run: give the "
                "LazyConfig .py that it was made from."
            )
        check_run(list(content.values()))
    elif isinstance(content, (list, tuple)):
        for value in content:
            check_run(value)


def _located(name: str) -> Any:
    """The object of a dotted name; None: there is none, or its package is none of the known ones."""
    try:
        return locate(name) if name.partition(".")[0] in _PACKAGES else None
    except ImportError:
        return None


def _is_own(name: str) -> bool:
    """Whether a dotted name is of code that is neither Python's nor an installed package's."""
    root = name.partition(".")[0]
    spec = None if root in (*_PACKAGES, *sys.builtin_module_names) else importlib.util.find_spec(root)
    places = [*(spec.submodule_search_locations or ()), spec.origin or ""] if spec else []
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(map(os.path.isabs, places)) and not any(x.startswith(folder) for x in places for folder in installed)


def _lies_in(found: object, modules: Sequence[str]) -> bool:
    """Whether an object was defined in one of these modules: "torch.os.system" is not torch's."""
    module = getattr(found, "__module__", None) or ""
    return any(module == part or module.startswith(f"{part}.") for part in modules)


class _Refused:
    """Stands in the place of an object that would run code. No dataclass: OmegaConf would make a config of it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: Any, trust: Sequence[str]) -> None:
        super().__init__(stream)
        self.trust = trust


def _tuple(loader: _Loader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _name(loader: _Loader, name: str, node: yaml.Node) -> Any:
    try:
        return _trusted(name, loader.trust)
    except ValueError as error:
        return _Refused(str(error))


def _dataclass(loader: _Loader, name: str, node: yaml.MappingNode) -> Any:
    cls, values = _name(loader, name, node), loader.construct_mapping(node, deep=True)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return _first_refused(values.values()) or cls(**values)
    return cls if isinstance(cls, _Refused) else _object(loader, f"object:{name}", node)


def _partial(loader: _Loader, node: yaml.MappingNode) -> Any:
    function, args, keywords, _ = loader.construct_mapping(node, deep=True)["state"]
    return _first_refused([function, *args, *keywords.values()]) or partial(function, *args, **keywords)


def _first_refused(values: Iterable[Any]) -> _Refused | None:
    return next((value for value in values if isinstance(value, _Refused)), None)


def _arithmetic(loader: _Loader, node: yaml.SequenceNode) -> Any:
    (text,) = loader.construct_sequence(node)
    tree = ast.parse(text, mode="eval")
    if not all(isinstance(part, _ARITHMETIC) for part in ast.walk(tree)):
        return _Refused(f"it computes {text!r}, expected numbers and lists alone: write the result in its place.")
    return eval(compile(tree, "<yaml>", "eval"), {"__builtins__": {}})


def _object(loader: _Loader, kind: str, node: yaml.Node) -> _Refused:
    return _Refused(
        f"it has !!python/{kind}, which would run code when it is read: give the LazyConfig .py that it was made from."
    )


_PYTHON = "tag:yaml.org,2002:python/"
_Loader.add_constructor(f"{_PYTHON}tuple", _tuple)
_Loader.add_constructor(f"{_PYTHON}object/apply:functools.partial", _partial)
_Loader.add_constructor(f"{_PYTHON}object/apply:eval", _arithmetic)
_Loader.add_multi_constructor(f"{_PYTHON}name:", _name)
_Loader.add_multi_constructor(f"{_PYTHON}object:", _dataclass)
_Loader.add_multi_constructor(_PYTHON, _object)
