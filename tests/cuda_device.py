"""A GPU with the interface of :class:`tests.pretended_device.PretendedDevice`: torch reports each wait for it."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch

from tests.pretended_device import innermost_line

__all__ = ["CudaDevice"]


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
