"""Small files of an experiment, read, and written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2kd.checkpoint import whole_file

__all__ = ["read_json", "write_json", "write_text"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's content."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; its folder is made."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; its folder is made."""
    with whole_file(path) as partial:
        partial.write_text(text)
