"""Layers that configs name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

__all__ = ["group_norm"]


def group_norm(num_groups: int) -> Callable[[int], nn.Module]:
    """A norm for Detectron2's ``norm=`` arguments; its own "GN" always has 32 groups.

    Args:
        num_groups: must divide the channels of the layers that it follows.
    """
    return partial(nn.GroupNorm, num_groups)
