"""The libraries that results were made with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from functools import cache

__all__ = ["versions"]


@cache
def versions() -> dict[str, str]:
    """Of Python and the libraries that decide a run's numbers."""
    names = ("d2kd", "torch", "torchvision", "detectron2", "numpy", "pycocotools")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **found}
