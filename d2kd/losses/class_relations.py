"""Relations between classes, whatever the logits' scale: the alternatives of FTPD's classification term."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import check_positive, check_reduction, check_weight, compute_dtype, weigh_and_reduce
from d2kd.losses.temperature_kl import check_inputs, temperature_kl

__all__ = ["PEARSON_AXES", "pearson_kd", "zscore_kd"]

#: What :func:`pearson_kd` correlates over.
PEARSON_AXES = ("class", "location", "both")


def zscore_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    eps: float = 1e-5,
    weight: Tensor | None = None,
    reduction: str = "none",
    dim: int = -1,
) -> Tensor:
    """
    KL between the softmaxes of logits standardised over classes.

    With x' = (x - mean_k x) / sqrt(var_k x + eps) over the K classes of location i, the variance that of the
    population, p = softmax(teacher'), q = softmax(student'):

        l_i = weight_i * sum_k p_ik (ln p_ik - ln q_ik)

    "Logit Standardization in Knowledge Distillation" (CVPR 2024, arXiv 2403.01427) without its base temperature and
    its factor: each side's own standard deviation is the temperature. That FTPD's classification term may be of this
    kind is a guess from its abstract, see :class:`d2kd.losses.TemperatureFreeClassificationKD`.

    Logits scaled by a positive number or shifted by a constant, on either side, change nothing but for ``eps``: the
    relations of classes are compared, not how sure a detector is. Where classes are all but equal, as on background,
    this amplifies noise, so it needs a ``weight`` that is small there. Logits constant over the classes are
    standardised to zeros, and their gradient is finite: 1 / sqrt(eps) times that with respect to x' at most. With one
    class it is zero.

    The teacher is detached; the gradient flows through the student's mean and deviation. Equal logits give zero, up to
    rounding. Computed in float32 whatever the input dtype or autocast (float64 stays float64), on any view; of the
    class maps only the two standardised ones are kept for the backward pass.

    Args:
        student_logits: raw logits, any shape with K classes on axis ``dim``, for instance (M, K), or the head's own
            map seen as (N, A, K, H, W) with ``dim=2``.
        teacher_logits: raw logits, same shape.
        eps: added to the variances, in the squared unit of the logits, > 0.
        weight: a factor per location, of the inputs' shape without axis ``dim``; detached.
        reduction: "none", "sum" or "mean" over locations (not a weighted mean; zero if there are none).
        dim: the class axis.

    Returns:
        The loss in nats: per location (the inputs' shape without axis ``dim``) for "none", else a scalar. float32, or
        float64 if an input is float64.

    Raises:
        ValueError: as :func:`d2kd.losses.softmax_classification_kd`, with ``eps`` in the place of the temperature.
    """
    _check("zscore_kd", student_logits, teacher_logits, eps, weight, reduction, dim)
    dtype = compute_dtype(student_logits, teacher_logits)
    student, teacher = (
        _Standardize.apply(x.to(dtype), None, (dim,), eps) for x in (student_logits, teacher_logits.detach())
    )
    loss = temperature_kl(student, teacher, temperature=1.0, bin_reduction="sum", dim=dim)
    return weigh_and_reduce(loss, weight, reduction)


def pearson_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    axis: str = "class",
    eps: float = 1e-5,
    weight: Tensor | None = None,
    reduction: str = "none",
    dim: int = -1,
) -> Tensor:
    """
    One minus Pearson's correlation of student and teacher logits, as half the squared difference of the standardised
    ones:

        l_i = weight_i * 1/2 mean_k (student'_ik - teacher'_ik)^2,    x' = (x - mean x) / sqrt(var x + eps)

    ``axis="class"``: mean and population variance over the K classes of each location, so that, but for ``eps``,
    l_i = weight_i (1 - corr_k). ``axis="location"``: of each class over all locations given, each counted with its
    ``weight``, so that the sum of l is the total weight times mean_k (1 - corr_i). ``axis="both"``: the mean of both.

    The two correlations are those of "Knowledge Distillation from A Stronger Teacher" (DIST, NeurIPS 2022, arXiv
    2205.10536), there between probabilities; half the squared difference is the form of PKD (NeurIPS 2022, arXiv
    2207.02039), there between features. That FTPD has such a term is a guess, see
    :class:`d2kd.losses.TemperatureFreeClassificationKD`; the weights and the mean of the two axes are choices of this
    library.

    Logits scaled by a positive number or shifted by a constant along the axis, on either side, change nothing but for
    ``eps``. Equal logits give zero loss and gradient, unlike 1 - corr also where they are constant along the axis. One
    constant side is standardised to zeros, so that over classes l_i = weight_i / 2. Over classes it is zero with one
    class, over locations with one location.

    Teacher, gradient and dtype as in :func:`zscore_kd`; an axis keeps two class maps for the backward pass.

    Args:
        student_logits, teacher_logits, eps, reduction, dim: as in :func:`zscore_kd`.
        axis: "class", "location" or "both".
        weight: a factor >= 0 per location, of the inputs' shape without axis ``dim``; detached.

    Returns:
        The loss, shaped as that of :func:`zscore_kd`.

    Raises:
        ValueError: as :func:`zscore_kd`, and for an unknown ``axis``.
    """
    _check("pearson_kd", student_logits, teacher_logits, eps, weight, reduction, dim)
    if axis not in PEARSON_AXES:
        raise ValueError(f"pearson_kd: axis must be one of {', '.join(PEARSON_AXES)}, found {axis!r}")
    dtype = compute_dtype(student_logits, teacher_logits)
    dim %= student_logits.dim()
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    parts = []
    if axis != "location":
        parts.append(_half_squares(student, teacher, None, (dim,), eps, dim))
    if axis != "class":
        share = torch.ones_like(student.select(dim, 0)) if weight is None else weight.to(dtype)
        share = (share / share.sum().clamp(min=torch.finfo(dtype).tiny)).unsqueeze(dim)
        others = tuple(x for x in range(student.dim()) if x != dim)
        parts.append(_half_squares(student, teacher, share, others, eps, dim))
    return weigh_and_reduce(sum(parts) / len(parts), weight, reduction)


def _half_squares(
    student: Tensor, teacher: Tensor, share: Tensor | None, over: Sequence[int], eps: float, dim: int
) -> Tensor:
    standardized = (_Standardize.apply(x, share, over, eps) for x in (student, teacher))
    return torch.sub(*standardized).square().mean(dim) / 2


class _Standardize(torch.autograd.Function):
    """
    (x - mean) / sqrt(var + eps) over the axes ``over``, with its analytic gradient; ``share``: weights that sum to 1
    over them, or None for equal ones. Autograd would keep three maps; this keeps the result, which what follows keeps.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, share: Tensor | None, over: Sequence[int], eps: float) -> Tensor:
        if share is None:
            share = x.new_full((), 1 / math.prod(x.shape[axis] for axis in over))
        centered = x - (x * share).sum(over, keepdim=True)
        deviation = centered.square().mul_(share).sum(over, keepdim=True).add_(eps).sqrt_()
        result = centered.div_(deviation)
        ctx.over = over
        ctx.save_for_backward(result, deviation, share)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        result, deviation, share = ctx.saved_tensors
        pull = result * (grad_output * result).sum(ctx.over, keepdim=True)
        pull.add_(grad_output.sum(ctx.over, keepdim=True)).mul_(share)
        return torch.sub(grad_output, pull).div_(deviation), None, None, None


def _check(
    caller: str, student: Tensor, teacher: Tensor, eps: float, weight: Tensor | None, reduction: str, dim: int
) -> None:
    check_inputs(caller, student, teacher, 1.0, "sum", dim)
    check_positive(caller, "eps", eps)
    check_reduction(caller, reduction, ("none", "sum", "mean"))
    expected = list(student.shape)
    del expected[dim]
    check_weight(caller, weight, expected, "the inputs' shape without the class axis")
