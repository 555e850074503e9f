"""How a LazyConfig is read; its nodes: what one makes, and copies that do not refer to the rest of their config."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from detectron2.config import LazyConfig, instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2kd.data.reading import check_registered

__all__ = [
    "check_datasets",
    "dataset_names",
    "load_lazy",
    "made",
    "self_contained",
    "target_name",
    "target_of",
    "targets",
]

Node = TypeVar("Node", bound=DictConfig | ListConfig)


def load_lazy(path: str) -> Any:
    """``LazyConfig.load``; if the file fails, Python's ``import`` is as it was, which Detectron2 leaves replaced."""
    imports = builtins.__import__
    try:
        return LazyConfig.load(path)
    finally:
        builtins.__import__ = imports


def target_of(node: DictConfig) -> Any:
    """The class or function that ``instantiate(node)`` calls; None if there is none."""
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def dataset_names(cfg: DictConfig, split: str, part: str = "dataset") -> list[str]:
    """
    The names of the datasets that ``cfg.dataloader[split]`` reads, as Detectron2 registers them: ``names`` of its
    ``dataset`` (or of its ``unlabeled``), or of the one in it, where that is :func:`d2kd.data.subset`; empty if there
    are none.
    """
    node = OmegaConf.select(cfg, f"dataloader.{split}.{part}", default=None)
    while isinstance(node, DictConfig):
        names = node.get("names")
        if names:
            return [names] if isinstance(names, str) else list(names)
        node = node.get("dataset")
    return []


def target_name(node: DictConfig) -> str:
    """The dotted name of what ``instantiate(node)`` calls."""
    target = target_of(node)
    return f"{target.__module__}.{target.__qualname__}" if callable(target) else str(target)


def made(node: Any, key: str) -> Any:
    """
    What a node makes.

    Args:
        key: its place in the config, for messages.

    Raises:
        ValueError: its target cannot be made of its arguments, or a dataset is not registered. Errors of d2kd's own
            that say what is wrong, and of files, are not changed.
    """
    check_datasets(node, key)
    try:
        return instantiate(node)
    except Exception as error:  # whatever a target does
        # Versions of Python have frames of comprehensions or not.
        *_, frame = (x for x, _ in traceback.walk_tb(error.__traceback__) if not x.f_code.co_name.startswith("<"))
        module = frame.f_globals.get("__name__") or ""
        own = module.startswith("d2kd.") and isinstance(error, (TypeError, ValueError, ImportError))
        if own or isinstance(error, OSError):
            raise
        if module == "detectron2.data.catalog" and isinstance(error, KeyError):
            name = str(error.args[0]).partition("'")[2].partition("'")[0]
            check_registered([name], key)
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        where = "" if module == instantiate.__module__ else f" (in {module}.{frame.f_code.co_name})"
        raise ValueError(
            f"{key} cannot be made: {type(error).__name__}: {reason}{where}. Correct its values."
        ) from error


def check_datasets(node: Any, key: str) -> None:
    """
    Check the names in each of Detectron2's ``get_detection_dataset_dicts`` of a node.

    Args:
        key: the node's place in the config, for messages.

    Raises:
        ValueError: there is no name, or none of a registered dataset.
    """
    for path, part in targets(node, key):
        if target_of(part) is not get_detection_dataset_dicts:
            continue
        names = part.get("names")
        if not names:
            raise ValueError(f"{path}.names is {names!r}, expected the name of a dataset, or a list of names.")
        check_registered([names] if isinstance(names, str) else names, f"{path}.names")


def targets(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """The place and the node of each ``_target_`` in a node, but for what it refers to."""
    if isinstance(node, ListConfig):
        for index, child in enumerate(node):
            yield from targets(child, f"{path}[{index}]")
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        yield path, node
    for name in node:
        if isinstance(name, str) and not OmegaConf.is_interpolation(node, name):
            yield from targets(node[name], f"{path}.{name}")


def self_contained(node: Node, name: str, move: str) -> Node:
    """
    A copy of ``node`` in which every interpolation that leads out of it is replaced by its value.

    Args:
        node: part of a config.
        name: path of ``node``, for messages.
        move: where it moves, for messages: "model moves under model.student".

    Raises:
        ValueError: an interpolation that cannot be resolved.
    """
    copy = deepcopy(node)
    for path, depth, text in _interpolations(OmegaConf.to_container(node, resolve=False)):
        if not _leads_out(text, depth):
            continue
        try:
            value = OmegaConf.select(node, path, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ValueError(
                f"{name}.{path} is {text!r}, which cannot be resolved before {move}: give it a value."
            ) from error
        if isinstance(value, (DictConfig, ListConfig)):
            # Its own interpolations have a meaning only where it stands.
            value = self_contained(value, f"{name}.{path}", move)
        OmegaConf.update(copy, path, value, merge=False, force_add=True)
    return copy


def _interpolations(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, int, str]]:
    """(path, number of containers around it, text) of every interpolation in nested dicts and lists."""
    if isinstance(content, str) and "${" in content:
        yield path, depth, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _interpolations(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _interpolations(value, f"{path}[{index}]", depth + 1)


def _leads_out(text: str, depth: int) -> bool:
    """Whether any ``${...}`` of the text is absolute, or climbs out of the node with its dots."""
    for inside in (part.split("}")[0].strip() for part in text.split("${")[1:]):
        if ":" in inside:  # a resolver such as ${oc.env:X} does not depend on the place
            continue
        dots = len(inside) - len(inside.lstrip("."))
        if dots == 0 or dots > depth:
            return True
    return False
