"""What every kernel does around its formula: refuse inputs that mean nothing, weigh and reduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "Context",
    "check_broadcast",
    "check_choice",
    "check_floating",
    "check_inputs",
    "check_integer",
    "check_maps",
    "check_number",
    "check_weight",
    "compute_dtype",
    "drop_unweighted",
    "weigh_and_reduce",
]

#: The ``ctx`` of an autograd.Function. It takes any attribute, so torch, too, annotates it as Any.
Context: TypeAlias = Any


def check_floating(caller: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{caller}: {name} must be floating point, found {tensor.dtype}")


def check_inputs(caller: str, dim: int | None = None, **pair: Tensor) -> None:
    """Refuse two tensors of different shapes or not floating point, and a ``dim`` that is no axis or an empty one."""
    (name, first), (other_name, other) = pair.items()
    shape = tuple(first.shape)
    if first.shape != other.shape:
        raise ValueError(
            f"{caller}: {name} and {other_name} must have the same shape, found {shape} and {tuple(other.shape)}"
        )
    check_floating(caller, **pair)
    if dim is None:
        return
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"{caller}: dim must be an axis of the inputs, whose shape is {shape}, found {dim}")
    if shape[dim] == 0:
        raise ValueError(f"{caller}: axis {dim} must not be empty, found inputs of shape {shape}")


def check_maps(caller: str, **maps: Tensor) -> None:
    """Refuse tensors that are not (N, C, H, W)."""
    for name, tensor in maps.items():
        if tensor.dim() != 4:
            raise ValueError(f"{caller}: {name} must be (N, C, H, W), found {tuple(tensor.shape)}")


def check_broadcast(caller: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor that is not floating point or does not broadcast to ``shape``."""
    check_floating(caller, **{name: tensor})
    sizes = zip(reversed(tensor.shape), reversed(shape))
    if tensor.dim() > len(shape) or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"{caller}: {name} must broadcast to {tuple(shape)}, found {tuple(tensor.shape)}")


def check_choice(owner: str, field: str, value: object, known: Sequence[str]) -> None:
    """Refuse a loss's ``field`` that is none of ``known``."""
    if value not in known:
        raise ValueError(f"{owner}.{field} is {value!r}, expected one of {', '.join(known)}.")


def check_integer(owner: str, field: str, value: object, *, at_least: int) -> None:
    """Refuse a loss's ``field`` that is not a whole number within the bound."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{owner}.{field} is {value!r}, expected a whole number >= {at_least}.")


def check_number(
    owner: str,
    field: str,
    value: object,
    *,
    above: float = 0,
    at_least: float | None = None,
    below: float = math.inf,
    meaning: str = "",
) -> None:
    """
    Refuse a loss's ``field`` that is not a finite number within bounds.

    Args:
        owner: the loss's class, for the error.
        field: the field, for the error.
        value: what the config has there.
        above: lower bound, itself refused.
        at_least: lower bound, itself accepted; takes the place of ``above``.
        below: upper bound, itself refused.
        meaning: ``above`` in words, where it is another field.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        if (value > above if at_least is None else value >= at_least) and value < below:
            return
    expected = (f"> {meaning} ({above})" if meaning else f"> {above}") if at_least is None else f">= {at_least}"
    if below < math.inf:
        expected += f" and < {below}"
    raise ValueError(f"{owner}.{field} is {value!r}, expected a finite number {expected}.")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if one of the tensors is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_weight(caller: str, loss: Tensor, weight: Tensor | None, reduction: str) -> None:
    """Refuse a weight of another shape than the ``loss`` or that requires grad, and an unknown ``reduction``."""
    if reduction not in ("none", "sum"):
        raise ValueError(f'{caller}: reduction must be "none" or "sum", found {reduction!r}')
    if weight is not None:
        if weight.shape != loss.shape:
            raise ValueError(
                f"{caller}: weight must be one factor per location, expected {tuple(loss.shape)}, found "
                f"{tuple(weight.shape)}"
            )
        if weight.requires_grad:
            raise ValueError(f"{caller}: weight must not require grad, pass weight.detach()")


def weigh_and_reduce(caller: str, loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """
    A loss per location times its weight, and the sum over locations where ``reduction`` is "sum".

    Raises:
        ValueError: a weight of another shape than the loss or one that requires grad, an unknown ``reduction``.
    """
    check_weight(caller, loss, weight, reduction)
    if weight is not None:
        loss = loss * weight.to(loss.dtype)
    return loss if reduction == "none" else loss.sum()


def drop_unweighted(region: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    """
    On a CPU, leave out the locations of weight zero where they are three quarters of a level or more.

    Reading few locations of a wide map costs less than a kernel over all of it there, and their weighted sum is the
    same. What stands at a location left out is not looked at, not even if it is not finite. Elsewhere counting them
    would make the host wait for the device, and all are kept.

    Args:
        region: weights (N, A, H, W), detached.
        maps: (N, A, ..., H, W), any axes between.

    Returns:
        ``region`` and ``maps``: as they are, or with the M locations of weight along the first axis and every other
        axis of a location of size 1, (M, 1, 1, 1) and (M, 1, ..., 1, 1), so that the axes between keep their place.
    """
    if region.device.type != "cpu" or 4 * int(region.count_nonzero()) >= region.numel():
        return region, *maps
    index = region.nonzero(as_tuple=True)
    rows = (_ReadLocations.apply(x, *index) for x in maps)
    return region[index][:, None, None, None], *(x[:, None, ..., None, None] for x in rows)


class _ReadLocations(torch.autograd.Function):
    """``x[image, anchor, ..., row, column]``, no location twice: its gradient is written, autograd would add it."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, *index: Tensor) -> Tensor:
        ctx.save_for_backward(*index)
        ctx.shape = x.shape
        view, at = _with_few_axes(x, index)
        return view[at]

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_output.new_zeros(ctx.shape)
        view, at = _with_few_axes(grad, ctx.saved_tensors)
        view[at] = grad_output
        return grad, None, None, None, None


def _with_few_axes(x: Tensor, index: Sequence[Tensor]) -> tuple[Tensor, tuple[Any, ...]]:
    """A view of a map, and an index into it of as few axes as its layout permits: with four it takes three times as
    long as with two."""
    image, anchor, *cell = index
    if x.stride(-2) == x.shape[-1] * x.stride(-1):
        row, column = cell
        cell = [row * x.shape[-1] + column]
        x = x.flatten(-2)
    return (x.squeeze(1), (image, ..., *cell)) if x.shape[1] == 1 else (x, (image, anchor, ..., *cell))
