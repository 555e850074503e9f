"""The difference of feature maps standardised channel by channel, independent of scale and offset: PKD's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.channels import STD_EPS, center, center_again, channel_blocks, take, through_statistics
from d2kd.losses.kernel import Context, check_inputs, check_maps, compute_dtype, weigh_and_reduce

__all__ = ["standardized_difference"]


def standardized_difference(
    student: Tensor,
    teacher: Tensor,
    *,
    correction: int = 1,
    weight: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """
    Half the squared difference of two maps' standard scores, mean over channels, per cell. With the mean and standard
    deviation of each channel over images and cells jointly:

        l_i = weight_i * mean_c (student^_ic - teacher^_ic)^2 / 2,    x^ = (x - mean(x)) / (std(x) + 1e-6)

    Its mean over all m = N*H*W cells is (1 - r) (m - correction) / m but for the added constant, r the Pearson
    correlation of the two maps, averaged over channels: PKD, "General Distillation Framework for Object Detectors via
    Pearson Correlation Coefficient" (NeurIPS 2022), whose code has ``correction=1`` and no weights.

    The statistics are those of the tensors given, a rank's batch with its padding: neither running nor reduced over
    ranks. The weights are applied after them, and the gradient flows through them. One value that is not finite makes
    all cells NaN.

    A single value a channel (N*H*W = 1) has no unbiased deviation and gives NaN in PKD's code; here all scores are then
    zero, and so are loss and gradient, connected to the student. A constant channel has scores of zero as well; where
    it is the student's, its gradient is large but finite, of scale 1e6, as in PKD's code. Of the maps only the two
    inputs are kept for the backward pass.

    Args:
        student: (N, C, H, W).
        teacher: same shape.
        correction: 1: the unbiased standard deviation, as in PKD's code; 0: the population's.
        weight, reduction: see :mod:`d2kd.losses`; a location is a cell.

    Returns:
        The loss, without unit, (N, H, W) or summed.

    Example:
        >>> student, teacher = torch.tensor([0.0, 1, 3]).view(1, 1, 1, 3), torch.tensor([9.0, 5, 0]).view(1, 1, 1, 3)
        >>> standardized_difference(student, teacher)
        tensor([[[1.6815, 0.0427, 2.2599]]])
    """
    caller = "standardized_difference"
    check_maps(caller, student=student, teacher=teacher)
    check_inputs(caller, 1, student=student, teacher=teacher)
    loss = _StandardizedDifference.apply(student, teacher.detach(), correction)
    return weigh_and_reduce(caller, loss, weight, reduction)


class _StandardizedDifference(torch.autograd.Function):
    """
    The per-cell loss with its analytic gradient, block by block of the channels.

    It keeps the two inputs in the dtype they came in, and the channels' statistics: no map is made but the gradient.
    Autocast needs no guard: there is nothing that it lowers.
    """

    @staticmethod
    def forward(ctx: Context, student: Tensor, teacher: Tensor, correction: int) -> Tensor:
        dtype = compute_dtype(student, teacher)
        cells = student.new_zeros((student.shape[0], *student.shape[2:]), dtype=dtype)
        ctx.blocks = channel_blocks(student, teacher)
        ctx.correction = correction
        statistics = []
        for block in ctx.blocks:
            (ours, *of_ours), (theirs, *of_theirs) = (
                center(take(x, block, dtype), correction) for x in (student, teacher)
            )
            cells += _gap(ours, of_ours[1], theirs, of_theirs[1]).square_().sum(dim=1)
            statistics += [*of_ours, *of_theirs]
        ctx.save_for_backward(student, teacher, *statistics)
        return cells.div_(2 * student.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *statistics = ctx.saved_tensors
        weight = grad_output.unsqueeze(1) / student.shape[1]
        grad = torch.empty_like(student)
        for i, block in enumerate(ctx.blocks):
            offset, std, teacher_offset, teacher_std = statistics[4 * i : 4 * i + 4]
            centered = center_again(take(student, block, weight.dtype), offset)
            theirs = center_again(take(teacher, block, weight.dtype), teacher_offset)
            gap = _gap(centered, std, theirs, teacher_std).mul_(weight)
            grad[:, block] = through_statistics(gap, centered, std, (std + STD_EPS).reciprocal_(), ctx.correction)
        return grad, None, None


def _gap(student: Tensor, std: Tensor, teacher: Tensor, teacher_std: Tensor) -> Tensor:
    """The difference of the standard scores of two centred maps; written over the teacher's."""
    return torch.sub(student / (std + STD_EPS), teacher.div_(teacher_std + STD_EPS), out=teacher)
