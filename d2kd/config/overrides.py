"""Overrides of a command line: ``key=value`` for a key that the config has, ``+key=value`` for a new one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from detectron2.config import LazyConfig
from detectron2.engine.hooks import PeriodicCheckpointer
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn.parallel import DistributedDataParallel

from d2kd.config.nodes import target_of
from d2kd.modeling.distillation.teacher import Teacher

__all__ = ["READ", "apply_overrides"]

#: Nodes that hold the arguments of these, without a ``_target_``.
_ARGUMENTS_OF: dict[str, Callable[..., object]] = {
    "model.teacher": Teacher,
    "train.ddp": DistributedDataParallel,
    "train.checkpointer": PeriodicCheckpointer,
}

#: The top-level keys that training reads. A LazyConfig has every mapping that its file imports, such as a teacher's.
READ = ("dataloader", "lr_multiplier", "model", "optimizer", "train")

_NO_DEFAULT = object()


def apply_overrides(cfg: DictConfig, overrides: Sequence[str], known: Mapping[str, Any]) -> None:
    """
    Apply overrides one after the other, as ``LazyConfig.apply_overrides`` does, but to keys that exist: those of the
    config, arguments of a node's ``_target_``, and ``known``.

    Args:
        cfg: changed.
        overrides: ``key=value``; ``+key=value`` is neither compared with the keys nor with their types.
        known: further keys, nested, with values of their types.

    Raises:
        ValueError: a key that does not exist, with the nearest that do; a number, text or truth value in place of
            another of these; or an override that cannot be applied.
    """
    for override in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
            key, value, is_new = parsed.key_or_group, parsed.value(), parsed.is_add() or parsed.is_force_add()
        except Exception as error:  # hydra's, which has no common class
            raise ValueError(
                f"The override {override!r} cannot be read, expected KEY=VALUE, with brackets that are closed and "
                "special characters in quotes: KEY=\"'a text: (x)'\"."
            ) from error
        if not (is_new or parsed.is_delete()):
            for path, leaf in _leaves(key, value):
                _check(cfg, known, override, path, leaf)
        try:
            LazyConfig.apply_overrides(cfg, [override])
        except Exception as error:  # of omegaconf, or of Detectron2's
            reason = str(error.args[0] if isinstance(error, KeyError) and error.args else error).partition("\n")[0]
            raise ValueError(f"The override {override!r} cannot be applied: {reason}") from error


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """The keys that a value sets, which is merged if it is a mapping with names; one without them is data."""
    if isinstance(value, dict) and value and all(type(name) is str for name in value):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _check(cfg: DictConfig, known: Mapping[str, Any], override: str, key: str, value: object) -> None:
    nodes: list[Any] = [cfg, known]
    parts = key.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[:depth])
        nodes = [node for node in nodes if node is not None]
        if not nodes:
            raise ValueError(
                f"The override {override!r} sets {key}, but {path} is null in this config: set {path} as a whole, or "
                f"add the key with +{override}."
            )
        if not any(isinstance(node, (Mapping, DictConfig, ListConfig)) for node in nodes):
            raise ValueError(
                f"The override {override!r} sets {key}, but {path} is {nodes[0]!r}, which has no keys: set {path} "
                "itself."
            )
        children = [child for node in nodes for child in _child(node, part)]
        if not children:
            arguments = _arguments(path, nodes)
            if part not in arguments and "**" not in arguments:
                raise _unknown(cfg, known, override, key, ".".join(parts[: depth + 1]), arguments)
            children = [arguments.get(part, _NO_DEFAULT)]
            if children == [_NO_DEFAULT] or depth < len(parts) - 1:
                return
        nodes = children
    _check_type(override, key, nodes[0], value)


def _child(node: Any, part: str) -> list[Any]:
    """The node's child of this name, if it has one."""
    try:
        if isinstance(node, ListConfig):
            return [node[int(part)]] if part.isdigit() and int(part) < len(node) else []
        return [node[part]] if isinstance(node, (Mapping, DictConfig)) and part in node else []
    except OmegaConfBaseException:  # a reference that leads nowhere, or a value that is required
        return [_NO_DEFAULT]


def _arguments(path: str, nodes: Sequence[Any]) -> dict[str, Any]:
    """What the target of a node takes: name -> default; with "**" if it takes any name."""
    targets = [target_of(node) for node in nodes if isinstance(node, DictConfig) and "_target_" in node]
    target = targets[0] if targets else _ARGUMENTS_OF.get(path)
    found: dict[str, Any] = {}
    for function in _callables(target) if callable(target) else ():
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            return {**found, "**": _NO_DEFAULT}
        names = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
        for p in names:
            found.setdefault(p.name, _NO_DEFAULT if p.default is p.empty else p.default)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found
    return {**found, "**": _NO_DEFAULT} if callable(target) else found


def _callables(target: Callable[..., object]) -> list[Callable[..., object]]:
    """A function; of a class, the constructors to which ``**kwargs`` may be handed on."""
    if not isinstance(target, type):
        return [target]
    return [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls) and cls is not object]


def _unknown(
    cfg: DictConfig, known: Mapping[str, Any], override: str, key: str, missing: str, arguments: Mapping[str, Any]
) -> ValueError:
    """The refusal of ``key``, whose part up to ``missing`` does not exist; ``arguments`` stand beside that."""
    keys = [*dict.fromkeys([*_keys(OmegaConf.to_container(cfg, resolve=False)), *_keys(known)])]
    parent, _, last = missing.rpartition(".")
    beside = [k for k in keys if k.rpartition(".")[0] == parent] + [f"{parent}.{name}" for name in arguments]
    names = {k.rpartition(".")[2]: k for k in beside}
    near = [names[name] + key.removeprefix(missing) for name in get_close_matches(last, names, 2, 0.7)]
    leaf = key.rpartition(".")[2]
    elsewhere = sorted(
        (k for k in keys if k.rpartition(".")[2] == leaf != "_target_"),
        key=lambda k: (k.partition(".")[0] not in READ, k.count(".")),
    )
    near = near or elsewhere[:2] or get_close_matches(key, [k for k in keys if not key.startswith(f"{k}.")], 2, 0.8)
    hint = f": did you mean {' or '.join(near)}?" if near else "."
    return ValueError(
        f"The override {override!r} is for {missing}, which this config does not have{hint} A new key is +key=value."
    )


def _keys(content: Any, path: str = "") -> Iterator[str]:
    """The dotted name of every key of nested mappings."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield f"{path}{name}"
            yield from _keys(value, f"{path}{name}.")


def _check_type(override: str, key: str, old: object, new: object) -> None:
    kinds = {"a number": (int, float), "a text": (str,), "true or false": (bool,)}
    types: dict[type, str] = {of_kind: kind for kind, many in kinds.items() for of_kind in many}
    if isinstance(old, (Mapping, DictConfig)) and isinstance(new, (int, float, str, list)):
        hint = "; --method takes the losses of a method" if key == "model.losses" else ""
        raise ValueError(
            f"The override {override!r} makes {key} {new!r}, expected a node (KEY=VALUE inside), or null{hint}."
        )
    expected, found = types.get(type(old)), types.get(type(new))
    not_finite = isinstance(new, float) and not math.isfinite(new) and isinstance(old, (int, float))
    if not_finite or (expected is not None and found is not None and expected != found):
        finite = " that is finite" if not_finite else ""
        raise ValueError(
            f"The override {override!r} makes {key} {new!r}, expected {expected}{finite}, such as its present value "
            f"{old!r} (+key=value sets it all the same)."
        )
