"""Model nodes of a LazyConfig: what a node calls, and copies of nodes that do not refer to the rest of their config."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, TypeVar

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["self_contained", "target_name", "target_of"]

Node = TypeVar("Node", bound=DictConfig | ListConfig)


def target_of(node: DictConfig) -> Any:
    """The class or function that ``instantiate(node)`` calls; None if there is none."""
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def target_name(node: DictConfig) -> str:
    """The dotted name of what ``instantiate(node)`` calls."""
    target = target_of(node)
    return f"{target.__module__}.{target.__qualname__}" if callable(target) else str(target)


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
