"""The difference of feature maps standardised channel by channel, independent of scale and offset: PKD's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.kernel import Context, check_inputs, check_maps, compute_dtype, weigh_and_reduce

__all__ = ["standardized_difference"]

_OVER = (0, 2, 3)

#: Added to standard deviations, in the unit of the features.
_EPS = 1e-6


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
    The per-cell loss with its analytic gradient.

    Autograd would keep about five maps (GFL's finest level: 68 MB each per 800x1333 image); this keeps the two
    inputs, in the dtype they came in, and the channels' statistics. Autocast needs no guard: there is nothing that
    it lowers.
    """

    @staticmethod
    def forward(ctx: Context, student: Tensor, teacher: Tensor, correction: int) -> Tensor:
        dtype = compute_dtype(student, teacher)
        s, t = student.to(dtype), teacher.to(dtype)
        statistics = (*_statistics(s, correction), *_statistics(t, correction))
        ctx.save_for_backward(student, teacher, *statistics)
        ctx.correction = correction
        _, gap = _centered_and_gap(s, t, statistics)
        return gap.square_().mean(dim=1).div_(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *statistics = ctx.saved_tensors
        dtype = compute_dtype(student, teacher)
        # By the scores g, then through the statistics: (g - mean(g)) / q - c * sum(g c) / ((m - correction) std q^2),
        # with c = s - mean(s) and q = std + eps.
        centered, grad = _centered_and_gap(student.to(dtype), teacher.to(dtype), tuple(statistics))
        grad.mul_(grad_output.unsqueeze(1)).div_(grad.shape[1])
        std = statistics[0]
        scale = std + _EPS
        degrees = max(_values_per_channel(student) - ctx.correction, 1)
        # A constant channel's deviation has no slope: 0, not 0 / 0.
        slope = (grad * centered).sum(dim=_OVER, keepdim=True).div_(std).div_(degrees * scale)
        slope.masked_fill_(std == 0, 0)
        grad.sub_(grad.mean(dim=_OVER, keepdim=True)).sub_(centered.mul_(slope)).div_(scale)
        return grad.to(student.dtype), None, None


def _values_per_channel(features: Tensor) -> int:
    return features.shape[0] * features.shape[2] * features.shape[3]


def _statistics(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel, (1, C, 1, 1)."""
    if _values_per_channel(x) == 1:
        return torch.zeros_like(x), x
    # Together: then the mean of a constant channel is its value, and what is left of it zero, to the last bit.
    return torch.std_mean(x, dim=_OVER, correction=correction, keepdim=True)


def _centered_and_gap(student: Tensor, teacher: Tensor, statistics: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The student less its mean, and the difference of the standard scores; both free to be written over."""
    student_std, student_mean, teacher_std, teacher_mean = statistics
    centered = student - student_mean
    gap = (teacher - teacher_mean).div_(teacher_std + _EPS)
    return centered, torch.sub(centered / (student_std + _EPS), gap, out=gap)
