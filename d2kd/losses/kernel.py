"""What every kernel does around its formula: refuse inputs that mean nothing, weigh and reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_axis",
    "check_floating",
    "check_number",
    "check_positive",
    "check_reduction",
    "check_weight",
    "compute_dtype",
    "drop_unweighted",
    "weigh_and_reduce",
]


def check_floating(caller: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{caller}: {name} must be floating point, found {tensor.dtype}")


def check_axis(caller: str, name: str, shape: Sequence[int], dim: int) -> None:
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"{caller}: dim must be an axis of the {name} {tuple(shape)}, found {dim}")


def check_positive(caller: str, name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{caller}: {name} must be a finite number > 0, found {value}")


def check_number(owner: str, field: str, value: Any, *, above: float = 0, meaning: str | None = None) -> None:
    """Refuse a loss's ``field`` that is no finite number above ``above``, which is ``meaning`` in words."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value > above):
        bound = f"{meaning} ({above})" if meaning else f"{above}"
        raise ValueError(f"{owner}.{field} is {value!r}, expected a finite number > {bound}.")


def check_reduction(caller: str, reduction: str, known: Sequence[str] = ("none", "sum")) -> None:
    if reduction not in known:
        names = ", ".join(f'"{name}"' for name in known[:-1]) + f' or "{known[-1]}"'
        raise ValueError(f"{caller}: reduction must be {names}, found {reduction!r}")


def check_weight(caller: str, weight: Tensor | None, expected: Sequence[int], meaning: str) -> None:
    """``expected``: the shape that the weight must have, which is ``meaning`` in words."""
    if weight is None:
        return
    if tuple(weight.shape) != tuple(expected):
        raise ValueError(
            f"{caller}: weight must have {meaning}, expected {tuple(expected)}, found {tuple(weight.shape)}"
        )
    if weight.requires_grad:
        raise ValueError(f"{caller}: weight must not require grad, pass weight.detach()")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of the tensors is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def weigh_and_reduce(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """A loss per location times its weight; "mean" divides by the number of locations (zero if there are none)."""
    if weight is not None:
        loss = loss * weight.to(loss.dtype)
    if reduction == "none":
        return loss
    total = loss.sum()
    return total / max(loss.numel(), 1) if reduction == "mean" else total


def drop_unweighted(region: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    """
    Leave out the locations of weight zero where they are three quarters of a level or more.

    Reading few locations of a wide map costs less than a kernel over all of it, and their weighted sum is the
    same. What stands at a location left out is not looked at, not even if it is not finite.

    Args:
        region: weights (N, A, H, W), detached.
        maps: (N, A, ..., H, W), any axes between.

    Returns:
        ``region`` and ``maps``: as they are, or with the M locations of weight along the first axis and every other
        axis of a location of size 1, (M, 1, 1, 1) and (M, 1, ..., 1, 1), so that the axes between keep their place.
    """
    index = region.nonzero(as_tuple=True)
    if 4 * len(index[0]) >= region.numel():
        return region, *maps
    image, anchor, row, column = index
    rows = (x[image, anchor, ..., row, column] for x in maps)
    return region[index][:, None, None, None], *(x[:, None, ..., None, None] for x in rows)
