"""Kullback-Leibler divergence between two softmaxes of one temperature: the kernel of LD and of softmax KD."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import check_axis, check_floating, check_positive, compute_dtype

__all__ = ["BIN_REDUCTIONS", "check_inputs", "check_temperature_field", "temperature_kl"]

#: What is taken over the bins of one softmax: the authors' mean, or the sum, which is the divergence itself.
BIN_REDUCTIONS = ("mean", "sum")


def temperature_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    bin_reduction: str = "mean",
    dim: int = -1,
) -> Tensor:
    """
    T^2 * KL(softmax(teacher / T) || softmax(student / T)) over axis ``dim``.

    With p = softmax(teacher / T), q = softmax(student / T) and B bins, per location:

        l = T^2 * sum_b p_b (ln p_b - ln q_b)      dl/dz_b = T (q_b - p_b)      ("sum"; "mean" divides by B)

    The factor T^2 is that of "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), which keeps
    the gradient's scale when the temperature changes.

    The teacher is detached. A constant added to all bins of a location changes nothing; equal logits give zero,
    up to rounding. Non-finite logits on either side make their location's loss non-finite. Computed in float32
    whatever the input dtype or autocast (float64 stays float64). The axis may be any of any view: no copy is made
    to move it, and only the two inputs are kept for the backward pass, which recomputes the rest.

    Args:
        student_logits: raw logits, any shape with the bins (or classes) on axis ``dim``.
        teacher_logits: raw logits, same shape.
        temperature: T > 0, in the unit of the logits.
        bin_reduction: "mean" or "sum" over the bins.
        dim: the axis of the softmax.

    Returns:
        The loss in nats per location, the inputs' shape without axis ``dim``; float32, or float64 if an input is.

    Raises:
        ValueError: shapes that differ, a non-floating dtype, a ``dim`` out of range or without bins, a ``temperature``
            that is not a finite number > 0, an unknown ``bin_reduction``.
    """
    check_inputs("temperature_kl", student_logits, teacher_logits, temperature, bin_reduction, dim)
    scale = 1 / student_logits.shape[dim] if bin_reduction == "mean" else 1.0
    return _TemperatureKL.apply(
        student_logits, teacher_logits.detach(), float(temperature), scale, dim % student_logits.dim()
    )


class _TemperatureKL(torch.autograd.Function):
    """
    The per-location loss, ``scale`` included, with its analytic gradient.

    Autograd would keep the softmaxes and their logarithms, a map each; this keeps the two inputs, in the dtype they
    came in. Autocast needs no guard: it computes a softmax in float32, or float64, as this does.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, student: Tensor, teacher: Tensor, temperature: float, scale: float, dim: int
    ) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.temperature, ctx.scale, ctx.dim = temperature, scale, dim
        log_q, log_p = _log_softmaxes(student, teacher, temperature, dim)
        p = log_p.exp()
        return p.mul_(log_p.sub_(log_q)).sum(dim).mul_(temperature**2 * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        log_q, log_p = _log_softmaxes(student, teacher, ctx.temperature, ctx.dim)
        grad = log_q.exp_().sub_(log_p.exp_())
        grad.mul_((grad_output * (ctx.temperature * ctx.scale)).unsqueeze(ctx.dim))
        return grad.to(student.dtype), None, None, None, None


def _log_softmaxes(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(student, teacher)
    return tuple(_log_softmax(x.to(dtype) / temperature, dim) for x in (student, teacher))


def _log_softmax(x: Tensor, dim: int) -> Tensor:
    # Torch's softmax copies a tensor that is not contiguous, such as the view of a channels-last map. Seen with its
    # axes in the order of memory, the quotient above is contiguous.
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    result = x.permute(order).log_softmax(order.index(dim))
    return result.permute([order.index(axis) for axis in range(x.dim())])


def check_inputs(
    caller: str, student: Tensor, teacher: Tensor, temperature: float, bin_reduction: str, dim: int
) -> None:
    """Refuse, in the name of ``caller``, what :func:`temperature_kl` cannot take."""
    if student.shape != teacher.shape or student.dim() == 0:
        raise ValueError(
            f"{caller}: student and teacher logits must have the same shape with an axis for the softmax, found "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    check_floating(caller, **{"student logits": student, "teacher logits": teacher})
    check_axis(caller, "logits", student.shape, dim)
    if student.shape[dim] == 0:
        raise ValueError(
            f"{caller}: the softmax needs one bin at least, found logits {tuple(student.shape)}, axis {dim}"
        )
    check_positive(caller, "temperature", temperature)
    if bin_reduction not in BIN_REDUCTIONS:
        raise ValueError(f'{caller}: bin_reduction must be "mean" or "sum", found {bin_reduction!r}')


def check_temperature_field(module: str, temperature: float) -> None:
    """Refuse a module's ``temperature`` that means nothing."""
    if not (isinstance(temperature, Real) and math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{module}.temperature is {temperature!r}, expected a finite number > 0.")
