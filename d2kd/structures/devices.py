"""What a device holds beside a step's tensors: constants, and the state of its random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["kept_random_state", "whole_numbers"]


@lru_cache(maxsize=64)
def whole_numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """
    int64 tensor of ``values``, made once for each device, since copying them makes the host wait; not to be changed.
    """
    with torch.inference_mode(False):  # whoever asks first, a graph may need it later
        return torch.tensor(values, dtype=torch.int64, device=device)


@contextmanager
def kept_random_state(*devices: torch.device) -> Iterator[None]:
    """Leave the random states of the CPU, of torch's default device and of ``devices`` as they were."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device in {torch.get_default_device(), *devices}:
            if device.type not in ("cpu", "meta"):  # which have no other, or none
                stack.enter_context(torch.random.fork_rng(devices=[device], device_type=device.type))
        yield
