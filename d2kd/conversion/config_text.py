"""OpenMMLab's config as the text that a checkpoint carries: read as literals, never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from d2kd.conversion.errors import ConversionError

__all__ = ["Unread", "find_mapping", "read_config_text", "select"]


class Unread:
    """A value that is no literal; equal to nothing but itself. Its text stands for it in messages."""

    def __init__(self, node: ast.AST) -> None:
        self._text = " ".join(ast.unparse(node).split())

    def __repr__(self) -> str:
        return self._text if len(self._text) <= 60 else f"{self._text[:60]}..."


def read_config_text(text: str) -> dict[str, Any]:
    """
    Args:
        text: of one config, or of one and those that it is based on, one after another, each below its path.

    Returns:
        its variables; values are literals, nested ``dict(...)`` included, or :class:`Unread`.

    Raises:
        ConversionError: it is no Python.
    """
    lines = ["" if re.fullmatch(r"\S+\.py\s*", line) else line for line in text.splitlines()]
    try:
        tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError) as error:
        raise ConversionError(
            f"The config that the file carries cannot be read ({error}): to have the published one's facts assumed, "
            "save the file's 'state_dict' alone with torch.save."
        ) from error
    inherits = any(_assigned(statement) == "_base_" for statement in tree.body)
    found: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and (name := _assigned(statement)) is not None:
            value = _value(statement.value, found)
            found[name] = _merged(found.get(name), value) if inherits else value
        else:  # a call or a loop that may change what it names
            for part in ast.walk(statement):
                if isinstance(part, ast.Name):
                    found[part.id] = Unread(statement)
    return found


def _assigned(statement: ast.stmt) -> str | None:
    """The name in ``name = value``."""
    if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
        return target.id
    return None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id, Unread(node))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(element, names) for element in node.elts]
    if isinstance(node, ast.Dict):
        return _mapping(node, list(zip(node.keys, node.values)), names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        keys = [None if word.arg is None else ast.Constant(word.arg) for word in node.keywords]
        return _mapping(node, list(zip(keys, [word.value for word in node.keywords])), names)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return Unread(node)


def _mapping(node: ast.expr, items: list[tuple[ast.expr | None, ast.expr]], names: Mapping[str, Any]) -> Any:
    found: dict[Any, Any] = {}
    for key, value in items:
        if key is not None and isinstance(key, ast.Constant):
            found[key.value] = _value(value, names)
        elif key is None and isinstance(inner := _value(value, names), dict):  # **other
            found |= inner
        else:
            return Unread(node)
    return found


def _merged(old: Any, new: Any) -> Any:
    """As a config is merged into the one that it is based on."""
    if not isinstance(new, dict):
        return new
    new = dict(new)
    if new.pop("_delete_", False) or not isinstance(old, dict):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


def select(content: Any, path: str) -> Any:
    """The value at a dotted path; None: it is absent; the :class:`Unread` that stands in its way."""
    for name in path.split("."):
        if isinstance(content, Unread):
            return content
        content = content.get(name) if isinstance(content, dict) else None
    return content


def find_mapping(content: Any, kind: str) -> dict[str, Any] | None:
    """The last nested mapping whose ``type`` is ``kind``, with or without its package."""
    found = None
    if isinstance(content, dict):
        if str(content.get("type")).rpartition(".")[2] == kind:
            found = content
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            found = find_mapping(value, kind) or found
    return found
