"""Numbers that a device holds."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["whole_numbers"]


@lru_cache(maxsize=64)
def whole_numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """
    int64 tensor of ``values``, made once for each device, since copying them makes the host wait; not to be changed.
    """
    with torch.inference_mode(False):  # whoever asks first, a graph may need it later
        return torch.tensor(values, dtype=torch.int64, device=device)
