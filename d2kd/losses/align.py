"""Alignment of a student's activations with the teacher's statistics, before they enter its layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.channels import STD_EPS, center, center_again, channel_blocks, first_values, take, through_statistics
from d2kd.losses.kernel import Context, check_floating, check_maps, compute_dtype

__all__ = ["align_statistics"]


def align_statistics(student_tap: Tensor, teacher_tap: Tensor, *, rectify: bool = False) -> Tensor:
    """
    Give each channel of the student's tap the mean and standard deviation of the teacher's.

        a = (s - mean(s)) / (std(s) + 1e-6) * std(t) + mean(t)

    per channel, over images and cells jointly, with the unbiased standard deviation; ``rectify``: max(a, 0).

    Part of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
    2306.11369). The details come from the authors' code, not from the paper's text: the constant is added to the
    student's deviation only, the statistics are of this rank's batch (neither running nor reduced over ranks,
    padding included), and the gradient flows through the student's statistics, as in batch normalisation. A ReLU
    follows there, but for the head's input.

    Where a tap has a single value per channel (N*H*W = 1: a 1x1 level with one image) the deviation does not exist
    and the authors' code gives NaN; here the result is the teacher's mean, with a zero gradient connected to the
    student's tap. A channel that is constant in the student gets the teacher's mean and a large but finite gradient,
    of scale std(t) / 1e-6. Of the maps only the student's tap is kept for the backward pass.

    Args:
        student_tap: (N, C, H, W).
        teacher_tap: (N', C, H', W'); same channels. Other sizes may differ, since only statistics are read.
        rectify: apply a ReLU to the result.

    Returns:
        The aligned tap, shape of ``student_tap``.

    Raises:
        ValueError: taps that are not four-dimensional, differ in channels or are not floating point.

    Example:
        >>> student, teacher = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([7.0, 7.0, 9.0])
        >>> align_statistics(student.view(1, 1, 1, 3), teacher.view(1, 1, 1, 3)).flatten()
        tensor([6.7938, 7.2302, 8.9760])
    """
    check_maps("align_statistics", student_tap=student_tap, teacher_tap=teacher_tap)
    check_floating("align_statistics", student_tap=student_tap, teacher_tap=teacher_tap)
    if student_tap.shape[1] != teacher_tap.shape[1]:
        raise ValueError(
            f"align_statistics: the taps must have the same channels, found {tuple(student_tap.shape)} and "
            f"{tuple(teacher_tap.shape)}; set model.tap_projector_channels to train a projector between two widths"
        )
    aligned: Tensor = _AlignStatistics.apply(student_tap, teacher_tap.detach(), rectify)
    return aligned


class _AlignStatistics(torch.autograd.Function):
    """
    The alignment with its analytic gradient, block by block of the channels.

    It keeps the student's tap in the dtype it came in, the channels' statistics and, for the ReLU's slope, the result,
    which the next layer keeps as well. Autocast needs no guard: there is nothing that it lowers.
    """

    @staticmethod
    def forward(ctx: Context, student: Tensor, teacher: Tensor, rectify: bool) -> Tensor:
        dtype = compute_dtype(student, teacher)
        aligned = torch.empty_like(student, dtype=dtype)
        ctx.blocks = channel_blocks(student, teacher)
        statistics = []
        for block in ctx.blocks:
            ours, theirs = (take(x, block, dtype) for x in (student, teacher))
            centered, offset, std = center(ours)
            _, teacher_offset, teacher_std = center(theirs)
            scale = teacher_std / (std + STD_EPS)
            mean = first_values(theirs) + teacher_offset
            result = torch.addcmul(mean, centered, scale, out=aligned[:, block])
            if rectify:
                result.relu_()
            statistics += [offset, std, scale]
        ctx.save_for_backward(student, aligned if rectify else None, *statistics)
        return aligned

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, rectified, *statistics = ctx.saved_tensors
        grad = torch.empty_like(student)
        for i, block in enumerate(ctx.blocks):
            offset, std, scale = statistics[3 * i : 3 * i + 3]
            result_grad = take(grad_output, block, std.dtype)
            if rectified is not None:
                result_grad = torch.ops.aten.threshold_backward(result_grad, take(rectified, block, std.dtype), 0)
            centered = center_again(take(student, block, std.dtype), offset)
            grad[:, block] = through_statistics(result_grad, centered, std, scale)
        return grad, None, None
