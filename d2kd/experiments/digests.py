"""Digests of configs and files, by which a change of what a result was made of is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

__all__ = ["config_sha256", "files_sha256", "sha256"]


@cache
def _file_sha256(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256(path: str) -> str | None:
    """Digest of a file, whose path may have a query, as checkpoints' may; None if there is none, or it is a URL."""
    path = path.split("?")[0]
    return _file_sha256(Path(path), os.stat(path).st_mtime_ns) if os.path.isfile(path) else None


def config_sha256(node: DictConfig | ListConfig) -> str:
    """Digest of a config, or of a node of one, with what it refers to."""
    content = json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True, default=_name_of)
    return hashlib.sha256(content.encode()).hexdigest()


def _name_of(value: Any) -> str:
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # without its address, which the next process changes


def files_sha256(cfg: DictConfig) -> dict[str, str]:
    """
    Place in a config -> digest of the file that it names: ``train.init_checkpoint``, and whatever ``model`` reads, such
    as a backbone's weights or a teacher's config. Not the teacher's checkpoint; of a model without losses, nothing of
    its teacher. Files that are not there are left out.
    """
    distils = bool(OmegaConf.select(cfg, "model.losses", default=None))
    named = {"train.init_checkpoint": cfg.train.get("init_checkpoint") or ""}
    for place, text in _texts(OmegaConf.to_container(cfg.model, resolve=True), "model"):
        if place != "model.teacher.checkpoint" and (distils or not place.startswith("model.teacher.")):
            named[place] = text
    return {place: digest for place, text in named.items() if (digest := sha256(text)) is not None}


def _texts(content: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield place, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(value, f"{place}.{key}")
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _texts(value, f"{place}[{index}]")
