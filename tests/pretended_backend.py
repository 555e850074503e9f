"""
The backend "pretended" of torch's ``PrivateUse1``, as torch has to know it: random numbers, autocast. Its tensors and
operators are in tests/pretended_device.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

__all__ = ["BACKEND", "DEVICE"]


class _Backend(backend_registration._DummyBackendModule):
    """``torch.pretended``; random numbers of the device have a generator of their own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.present = False

    def is_available(self) -> bool:
        return self.present

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def get_rng_state(self, device: object = None) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        self.generator.set_state(state)


BACKEND = _Backend()


class _Hook(backend_registration._DummyPrivateUse1Hook):
    """Outside of :class:`PretendedDevice` torch finds no accelerator, and does what it does without."""

    def is_available(self) -> bool:
        return BACKEND.present


backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=BACKEND, hook=_Hook())
DEVICE = torch.device("pretended", 0)


def _in_autocast_dtype(operator: str) -> None:
    """Register that autocast runs ``operator`` in its dtype."""
    run = getattr(torch.ops.aten, operator).default
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(x: Any) -> Any:
        is_float = isinstance(x, Tensor) and x.is_floating_point()
        return x.to(torch.get_autocast_dtype(DEVICE.type)) if is_float else x

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return run(*tree_map(cast, args))

    _AUTOCAST_LIBRARY.impl(operator, kernel, "AutocastPrivateUse1")


# Autocast casts the inputs of convolutions and products, and leaves the rest as it is.
_AUTOCAST_DEFAULT = torch.library.Library("_", "IMPL")
_AUTOCAST_DEFAULT.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_AUTOCAST_LIBRARY = torch.library.Library("aten", "IMPL")
for _operator in ("conv2d", "linear", "matmul", "addmm", "bmm"):
    _in_autocast_dtype(_operator)
