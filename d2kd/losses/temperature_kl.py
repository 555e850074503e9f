"""Kullback-Leibler divergence between two softmaxes at a temperature: the kernel of LD, of softmax KD and of FTPD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.kernel import Context, check_broadcast, check_inputs, check_number, compute_dtype, weigh_and_reduce

__all__ = ["BIN_REDUCTIONS", "log_softmax", "temperature_kl"]

#: What is taken over the bins of one softmax: the authors' mean, or the sum, which is the divergence itself.
BIN_REDUCTIONS = ("mean", "sum")


def temperature_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor,
    bin_reduction: str = "mean",
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    T^2 * KL(softmax(teacher / T) || softmax(student / T)) over axis ``dim``.

    With p = softmax(teacher / T), q = softmax(student / T) over B bins, per location i:

        l_i = weight_i * T^2 * sum_b p_ib (ln p_ib - ln q_ib)      dl/dz_b = T (q_b - p_b)      ("mean" divides by B)

    The factor is that of "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), which keeps the
    gradient's scale when the temperature changes.

    A constant added to all bins of a location changes nothing; equal logits give zero, up to rounding. The gradient is
    computed with the loss: one map is kept for the backward pass.

    Args:
        student_logits: raw logits, any shape with the bins (or classes) on axis ``dim``.
        teacher_logits: raw logits, same shape.
        temperature: T > 0, in the unit of the logits: a number, or a tensor that broadcasts to the inputs' shape with
            size 1 on axis ``dim``. A tensor that requires grad gets its gradient, the factor's included; one made of
            the logits has to be detached to be a constant. A tensor's values are not looked at: it may lie on a GPU.
        bin_reduction: "mean" or "sum" over the bins.
        weight, dim, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss in nats times the squared unit of the logits.

    Raises:
        ValueError: see :mod:`d2kd.losses`; a number for ``temperature`` that is not above 0, or a tensor that does not
            broadcast as said.
        KeyError: an unknown ``bin_reduction``.

    Example:
        >>> student, teacher = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 2.0], [0.0, 4.0, 8.0]])
        >>> temperature_kl(student, teacher, temperature=2.0, bin_reduction="sum")
        tensor([0.3137, 2.6302])
    """
    check_inputs("temperature_kl", dim, student_logits=student_logits, teacher_logits=teacher_logits)
    dim %= student_logits.dim()
    if isinstance(temperature, Tensor):
        wanted = [1 if axis == dim else size for axis, size in enumerate(student_logits.shape)]
        check_broadcast("temperature_kl", "temperature", temperature, wanted)
        temperature = temperature.to(compute_dtype(student_logits, teacher_logits))
    else:
        check_number("temperature_kl", "temperature", temperature)
    scale = {"mean": 1 / student_logits.shape[dim], "sum": 1.0}[bin_reduction]
    loss = _TemperatureKL.apply(student_logits, teacher_logits.detach(), temperature, scale, dim)
    return weigh_and_reduce("temperature_kl", loss, weight, reduction)


class _TemperatureKL(torch.autograd.Function):
    """
    The per-location loss, ``scale`` included, and its gradient from the same two softmaxes.

    Keeps the gradient's map alone; autograd would keep four maps and compute the student's softmax once more. Autocast
    needs no guard: it computes a softmax in float32, or float64, as this does.
    """

    @staticmethod
    def forward(
        ctx: Context, student: Tensor, teacher: Tensor, temperature: float | Tensor, scale: float, dim: int
    ) -> Tensor:
        dtype = compute_dtype(student, teacher)
        log_q, log_p = (log_softmax(x.to(dtype) / temperature, dim) for x in (student, teacher))
        derivative = None
        if isinstance(temperature, Tensor) and ctx.needs_input_grad[2]:
            derivative = _temperature_derivative(log_p, log_q, temperature, dim).mul_(scale)
            ctx.temperature_shape = temperature.shape
        p = log_p.exp()
        kl = log_p.sub_(log_q).mul_(p).sum(dim)
        grad = log_q.exp_().sub_(p).mul_(temperature * scale) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(grad, derivative)
        ctx.dim, ctx.dtype = dim, student.dtype
        return kl.mul_(_without(temperature * temperature, student, dim) * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad, derivative = ctx.saved_tensors
        grad_output = grad_output.unsqueeze(ctx.dim)
        if grad is not None:
            grad = (grad * grad_output).to(ctx.dtype)
        if derivative is not None:
            derivative = (derivative * grad_output).sum_to_size(ctx.temperature_shape)
        return grad, None, derivative, None, None


def _temperature_derivative(log_p: Tensor, log_q: Tensor, temperature: Tensor, dim: int) -> Tensor:
    """
    d(T^2 KL)/dT, axis ``dim`` kept. With a = ln p - ln q:

        T (2 KL - Cov_p(a, ln p) - sum_b (q_b - p_b) ln q_b)
    """
    p = log_p.exp()
    a = log_p - log_q
    kl = (p * a).sum(dim, keepdim=True)
    covariance = (p * a * (log_p - (p * log_p).sum(dim, keepdim=True))).sum(dim, keepdim=True)
    moment = ((log_q.exp() - p) * log_q).sum(dim, keepdim=True)
    return temperature * (2 * kl - covariance - moment)


def _without(factor: float | Tensor, logits: Tensor, dim: int) -> float | Tensor:
    """A factor per location without the axis of the softmax, where it has that axis."""
    axis = dim - logits.dim()
    return factor.squeeze(axis) if isinstance(factor, Tensor) and factor.dim() >= -axis else factor


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """``x.log_softmax(dim)`` without a copy of a dense ``x`` that is not contiguous, in its own layout."""
    # Torch's softmax copies a tensor that is not contiguous, such as the view of a channels-last map. Seen with its
    # axes in the order of memory, the quotient above is contiguous. Axes of one element come first: where bins lie next
    # to one another, softmax is several times as fast if they are also the last axis.
    order = sorted(range(x.dim()), key=lambda axis: (x.shape[axis] == 1, x.stride(axis)), reverse=True)
    result = x.permute(order).log_softmax(order.index(dim))
    return result.permute([order.index(axis) for axis in range(x.dim())])
