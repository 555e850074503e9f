"""Feature maps as standard scores, channel by channel, which no scale or offset moves: PKD's comparison."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import check_floating, check_reduction, check_weight, compute_dtype, weigh_and_reduce

__all__ = ["standardize", "standardized_difference"]


def standardize(features: Tensor, *, correction: int = 1, eps: float = 1e-6) -> Tensor:
    """
    Standard scores of each channel, over images and cells jointly:

        y = (x - mean(x)) / (std(x) + eps)

    The gradient flows through both statistics. A channel that is constant, as every channel is where it has a single
    value (N*H*W = 1: a 1x1 level with one image), becomes zero. Computed in float32 whatever the input dtype or
    autocast (float64 stays float64).

    Args:
        features: (N, C, H, W).
        correction: 1: the unbiased standard deviation, as in PKD's code; 0: the population's.
        eps: added to the standard deviation, in the unit of the features, > 0.

    Returns:
        (N, C, H, W), without unit; float32 or float64.

    Raises:
        ValueError: a tensor that is not four-dimensional or not floating point, another ``correction``, ``eps`` <= 0.
    """
    if features.dim() != 4:
        raise ValueError(f"standardize: features must be (N, C, H, W), found {tuple(features.shape)}")
    check_floating("standardize", features=features)
    _check_options("standardize", correction, eps)
    x = features.to(compute_dtype(features))
    std, mean = _statistics(x, correction)
    return (x - mean) / (std + eps)


def standardized_difference(
    student: Tensor,
    teacher: Tensor,
    *,
    channel_weight: Tensor | None = None,
    weight: Tensor | None = None,
    correction: int = 1,
    eps: float = 1e-6,
    reduction: str = "none",
) -> Tensor:
    """
    Half the squared difference of two maps' standard scores, mean over channels, per cell. With ^ for
    :func:`standardize`:

        l_i = weight_i * mean_c channel_weight_c (student^_ic - teacher^_ic)^2 / 2

    Its mean over all m = N*H*W cells is (1 - r) (m - correction) / m but for eps, r the Pearson correlation of the two
    maps, averaged over channels: PKD, "General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient" (NeurIPS 2022), whose code has ``correction=1`` and no weights.

    The statistics are those of the tensors given, a rank's batch with its padding: neither running nor reduced over
    ranks. The weights are applied after them.

    The teacher is detached. A single value a channel (N*H*W = 1) has no unbiased deviation and gives NaN in PKD's
    code; here all scores are then zero, and so are loss and gradient, connected to the student. A constant channel
    has scores of zero as well; where it is the student's, its gradient is large but finite, of scale 1 / eps, as in
    PKD's code. Computed in float32 whatever the input dtype or autocast (float64 stays float64); of the maps only
    the two inputs are kept for the backward pass.

    Args:
        student: (N, C, H, W).
        teacher: same shape.
        channel_weight: a factor per image and channel, (N, C); detached.
        weight: a factor per cell, (N, H, W); detached.
        correction, eps: see :func:`standardize`.
        reduction: "none", "sum" or "mean" over cells (not a weighted mean; zero if there are none).

    Returns:
        The loss, without unit: (N, H, W) for "none", else a scalar. float32, or float64 if an input is float64.

    Raises:
        ValueError: as :func:`standardize`; shapes that differ or have no channel, an unknown ``reduction``, a weight
            of another shape or one that requires grad.
    """
    caller = "standardized_difference"
    if student.shape != teacher.shape or student.dim() != 4 or student.shape[1] == 0:
        raise ValueError(
            f"{caller}: student and teacher must have the same shape (N, C, H, W), found {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}; another width needs a projector first"
        )
    check_floating(caller, student=student, teacher=teacher)
    _check_options(caller, correction, eps)
    check_reduction(caller, reduction, ("none", "sum", "mean"))
    check_weight(f"{caller}: channel_weight", channel_weight, student.shape[:2], "the maps' images and channels")
    check_weight(caller, weight, (len(student), *student.shape[2:]), "the maps' shape without channels")
    loss = _StandardizedDifference.apply(student, teacher.detach(), channel_weight, correction, eps)
    return weigh_and_reduce(loss, weight, reduction)


class _StandardizedDifference(torch.autograd.Function):
    """
    The per-cell loss with its analytic gradient.

    Autograd would keep about five maps (GFL's finest level: 68 MB each per 800x1333 image); this keeps the two
    inputs, in the dtype they came in, and the channels' statistics. Autocast needs no guard: there is nothing that
    it lowers.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, student: Tensor, teacher: Tensor, channel_weight: Tensor | None, correction: int, eps: float
    ) -> Tensor:
        dtype = compute_dtype(student, teacher)
        s, t = student.to(dtype), teacher.to(dtype)
        statistics = (*_statistics(s, correction), *_statistics(t, correction))
        ctx.save_for_backward(student, teacher, channel_weight, *statistics)
        ctx.correction, ctx.eps = correction, eps
        _, gap = _centered_and_gap(s, t, statistics, eps)
        gap.square_()
        if channel_weight is not None:
            gap.mul_(channel_weight.to(dtype)[:, :, None, None])
        return gap.mean(dim=1).div_(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, channel_weight, *statistics = ctx.saved_tensors
        dtype = compute_dtype(student, teacher)
        # By the scores g, then through the statistics: (g - mean(g)) / q - c * sum(g c) / ((m - correction) std q^2),
        # with c = s - mean(s) and q = std + eps.
        centered, grad = _centered_and_gap(student.to(dtype), teacher.to(dtype), statistics, ctx.eps)
        grad.mul_(grad_output.unsqueeze(1)).div_(grad.shape[1])
        if channel_weight is not None:
            grad.mul_(channel_weight.to(dtype)[:, :, None, None])
        std = statistics[0]
        scale = std + ctx.eps
        degrees = max(_values_per_channel(student) - ctx.correction, 1)
        # A constant channel's deviation has no slope: 0, not 0 / 0.
        slope = (grad * centered).sum(dim=_OVER, keepdim=True).div_(std).div_(degrees * scale)
        slope.masked_fill_(std == 0, 0)
        grad.sub_(grad.mean(dim=_OVER, keepdim=True)).sub_(centered.mul_(slope)).div_(scale)
        return grad.to(student.dtype), None, None, None, None


_OVER = (0, 2, 3)


def _values_per_channel(features: Tensor) -> int:
    return features.shape[0] * features.shape[2] * features.shape[3]


def _statistics(x: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel, (1, C, 1, 1)."""
    if _values_per_channel(x) == 1:
        return torch.zeros_like(x), x
    # Together: then the mean of a constant channel is its value, and what is left of it zero, to the last bit.
    return torch.std_mean(x, dim=_OVER, correction=correction, keepdim=True)


def _centered_and_gap(
    student: Tensor, teacher: Tensor, statistics: tuple[Tensor, ...], eps: float
) -> tuple[Tensor, Tensor]:
    """The student less its mean, and the difference of the standard scores; both free to be written over."""
    student_std, student_mean, teacher_std, teacher_mean = statistics
    centered = student - student_mean
    gap = (teacher - teacher_mean).div_(teacher_std + eps)
    return centered, torch.sub(centered / (student_std + eps), gap, out=gap)


def _check_options(caller: str, correction: int, eps: float) -> None:
    if isinstance(correction, bool) or correction not in (0, 1):
        raise ValueError(f"{caller}: correction must be 0 or 1, found {correction!r}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"{caller}: eps must be a finite number > 0, found {eps}")
