"""Losses over class maps whose gradient is made together with their value, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.kernel import Context, check_weight, compute_dtype

__all__ = ["KnownGradient", "block_size", "blocks", "one_pass"]


def one_pass(
    caller: str,
    kernel: Callable[..., tuple[Tensor, Tensor]],
    logits: Tensor,
    other: Tensor,
    *,
    spare: int,
    across_classes: bool = False,
    weight: Tensor | None,
    dim: int,
    reduction: str,
) -> Tensor:
    """
    A loss that is a sum over classes, and its gradient, in one pass over two maps.

    Autograd makes a dozen maps and keeps several for a second pass. This works in blocks that stay in the processor's
    cache and keeps one map for the backward pass, the gradient, in the dtype of ``logits`` (in float32 for float16,
    in which a gradient that is not scaled yet may vanish). Neither input is kept. Where ``logits`` need no gradient,
    there is no such map. Autocast needs no guard: it lowers matrix products and convolutions only, and there are none.

    Args:
        caller: the public function, for errors.
        kernel: called with a block of ``logits``, the same of ``other`` and ``spare`` buffers, each (..., K) in
            float32 or float64 and free to be written over. It returns the loss of every element, which is summed over
            K, and the derivative of a location's sum by each of its logits.
        logits, other: maps of one shape, checked.
        spare: number of buffers.
        across_classes: whether the kernel needs all classes of a location in one block.
        weight, dim, reduction: see :mod:`d2kd.losses`.
    """
    dtype, dim = compute_dtype(logits, other), dim % logits.dim()
    loss = logits.new_zeros(logits.shape[:dim] + logits.shape[dim + 1 :], dtype=dtype)
    check_weight(caller, loss, weight, reduction)
    weight = loss.new_ones(()).expand_as(loss) if weight is None else weight.to(dtype)
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.no_grad():
        maps = [logits, other, loss.unsqueeze(dim), weight.unsqueeze(dim)]
        if needs_gradient:
            maps.append(torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.bfloat16)))
        # The axes in the order of memory: blocks are as dense as the map, and buffers are laid out like them.
        order = sorted(range(logits.dim()), key=logits.stride, reverse=True)
        axis = order.index(dim)
        size = max(block_size(logits.device), logits.shape[dim])
        buffers = logits.new_empty((2 + spare, min(size, logits.numel())), dtype=dtype)
        views = blocks([x.permute(order) for x in maps], size, whole_axis=axis if across_classes else None)
        for z, t, block_loss, block_weight, *gradient in views:
            block = buffers[:, : z.numel()].unflatten(1, z.shape).movedim(axis + 1, -1).unbind()
            block[0].copy_(z.movedim(axis, -1))
            block[1].copy_(t.movedim(axis, -1))
            value, slope = kernel(*block)
            block_loss.add_(value.sum(-1).unsqueeze(axis))
            if gradient:
                torch.mul(slope.movedim(-1, axis), block_weight, out=gradient[0])
        loss.mul_(weight)
        if reduction == "sum":
            loss = loss.sum()
    return KnownGradient.apply(logits, loss, maps[-1], dim) if needs_gradient else loss


def block_size(device: torch.device) -> int:
    """So few elements that the buffers stay in a core's cache; on a GPU so many that it is busy."""
    return 2**17 * torch.get_num_threads() if device.type == "cpu" else 2**24


def blocks(maps: Sequence[Tensor], size: int, *, whole_axis: int | None = None) -> Iterator[Sequence[Tensor]]:
    """
    Maps cut alike, along the outermost axes of the first in memory, into views of at most ``size`` elements of it.

    Args:
        maps: of one shape, but for axes of size 1 where the first map is longer: there they are not cut.
        whole_axis: an axis that is not cut, of ``size`` at most.
    """
    first = maps[0]
    if first.numel() <= size:
        yield maps
        return
    axis = max((i for i, length in enumerate(first.shape) if length > 1 and i != whole_axis), key=first.stride)
    length = first.shape[axis]
    step = -(-length // min(length, -(-first.numel() // size)))
    for parts in zip(*(x.split(step, axis) if x.shape[axis] == length else repeat(x) for x in maps)):
        yield from blocks(parts, size, whole_axis=whole_axis)


class KnownGradient(torch.autograd.Function):
    """
    ``value``, a scalar or one number a location, as a function of ``x``, from which it was made outside of autograd;
    with its gradient, at a location that of this location's number.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, value: Tensor, gradient: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.dim = x.dtype, dim
        return value.clone()  # an input that is returned as it is may not be changed in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors  # left as it is: the graph may be retained
        factor = grad_output.unsqueeze(ctx.dim) if grad_output.dim() else grad_output
        return (gradient * factor).to(ctx.dtype), None, None, None
