"""A GPU with the interface of :class:`tests.pretended_device.PretendedDevice`: torch reports each wait for it."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

__all__ = ["CudaDevice", "innermost_line"]

#: Whose lines are named in counts.
_PACKAGES = ("d2kd", "detectron2", "fvcore", "tests")


class CudaDevice:
    """Inside, waits are counted, and convolutions are in fp32, not in TF32."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self._counted: Counter[str] = Counter()
        self._inside = ExitStack()

    def __enter__(self) -> CudaDevice:
        self._inside.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        self._inside.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        show = warnings.showwarning

        def count(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                self._counted[innermost_line()] += 1
            else:
                show(message, *args, **kwargs)

        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        self._inside.callback(torch.cuda.set_sync_debug_mode, "default")
        return self

    def __exit__(self, *error: object) -> None:
        self._inside.close()

    @property
    def waits(self) -> Counter[str]:
        """line -> how often the host waited there, for a number or for a copy."""
        return self._counted.copy()

    def reset(self) -> None:
        self._counted.clear()


def innermost_line() -> str:
    """The innermost line of the project or of Detectron2 that is running."""
    frame = sys._getframe()
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        package = next((i for i in reversed(range(len(parts))) if parts[i] in _PACKAGES), None)
        if package is not None and parts[-1] not in ("pretended_device.py", "cuda_device.py"):
            return f"{'/'.join(parts[package:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]  # None after the last
    return "torch"
