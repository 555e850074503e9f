"""Kullback-Leibler divergence between two softmaxes at a temperature: the kernel of LD, of softmax KD and of FTPD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import check_axis, check_floating, check_positive, compute_dtype

__all__ = [
    "BIN_REDUCTIONS",
    "GRAD_SCALES",
    "check_inputs",
    "log_softmax",
    "temperature_kl",
]

#: What is taken over the bins of one softmax: the authors' mean, or the sum, which is the divergence itself.
BIN_REDUCTIONS = ("mean", "sum")

#: What the divergence is multiplied by: the product of the two temperatures (T^2 where they are one), or nothing.
GRAD_SCALES = ("t2", "none")


def temperature_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float | Tensor,
    student_temperature: float | Tensor | None = None,
    bin_reduction: str = "mean",
    grad_scale: str = "t2",
    dim: int = -1,
) -> Tensor:
    """
    T^2 * KL(softmax(teacher / T) || softmax(student / T)) over axis ``dim``.

    With p = softmax(teacher / T_t), q = softmax(student / T_s), where T_s = T_t = T unless the student has its own,
    and B bins, per location:

        l = T_t T_s * sum_b p_b (ln p_b - ln q_b)      dl/dz_b = T_t (q_b - p_b)      ("sum"; "mean" divides by B)

    The factor is that of "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), which keeps the
    gradient's scale when the temperature changes; ``grad_scale="none"`` leaves it out.

    The teacher is detached. A constant added to all bins of a location changes nothing; equal logits at equal
    temperatures give zero, up to rounding. Non-finite logits on either side make their location's loss non-finite.
    Computed in float32 whatever the input dtype or autocast (float64 stays float64). The axis may be any of any view:
    no copy is made to move it, and only the two inputs and the temperatures are kept for the backward pass, which
    recomputes the rest.

    Args:
        student_logits: raw logits, any shape with the bins (or classes) on axis ``dim``.
        teacher_logits: raw logits, same shape.
        temperature: T > 0, in the unit of the logits: a number, or a tensor that broadcasts to the inputs' shape with
            size 1 on axis ``dim``. A tensor that requires grad gets its gradient, the factor's included; one made of
            the logits has to be detached to be a constant. A tensor's values are not looked at: it may lie on a GPU.
        student_temperature: T_s; None: ``temperature``.
        bin_reduction: "mean" or "sum" over the bins.
        grad_scale: "t2" (the factor T_t T_s) or "none".
        dim: the axis of the softmax.

    Returns:
        The loss in nats (times the square of the logits' unit with the factor) per location, the inputs' shape without
        axis ``dim``; float32, or float64 if an input is.

    Raises:
        ValueError: shapes that differ, a non-floating dtype, a ``dim`` out of range or without bins, a temperature that
            is neither a finite number > 0 nor a tensor as above, an unknown ``bin_reduction`` or ``grad_scale``.
    """
    check_inputs("temperature_kl", student_logits, teacher_logits, temperature, bin_reduction, dim)
    if student_temperature is None:
        student_temperature = temperature
    else:
        _check_temperature("temperature_kl", "student_temperature", student_temperature, student_logits.shape, dim)
    if grad_scale not in GRAD_SCALES:
        raise ValueError(f'temperature_kl: grad_scale must be "t2" or "none", found {grad_scale!r}')
    scale = 1 / student_logits.shape[dim] if bin_reduction == "mean" else 1.0
    temperatures = (t if isinstance(t, Tensor) else float(t) for t in (temperature, student_temperature))
    return _TemperatureKL.apply(
        student_logits,
        teacher_logits.detach(),
        *temperatures,
        scale,
        grad_scale == "t2",
        dim % student_logits.dim(),
    )


class _TemperatureKL(torch.autograd.Function):
    """
    The per-location loss, ``scale`` included, with its analytic gradient.

    Autograd would keep the softmaxes and their logarithms, a map each; this keeps the two inputs, in the dtype they
    came in, and the temperatures. Autocast needs no guard: it computes a softmax in float32, or float64, as this does.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        student: Tensor,
        teacher: Tensor,
        t_teacher: float | Tensor,
        t_student: float | Tensor,
        scale: float,
        with_factor: bool,
        dim: int,
    ) -> Tensor:
        tensors = [t for t in (t_teacher, t_student) if isinstance(t, Tensor)]
        ctx.save_for_backward(student, teacher, *tensors)
        ctx.numbers = [None if isinstance(t, Tensor) else t for t in (t_teacher, t_student)]
        ctx.scale, ctx.with_factor, ctx.dim = scale, with_factor, dim
        t_teacher, t_student = (_cast(t, compute_dtype(student, teacher)) for t in (t_teacher, t_student))
        log_q, log_p = _log_softmaxes(student, teacher, t_teacher, t_student, dim)
        p = log_p.exp()
        kl = p.mul_(log_p.sub_(log_q)).sum(dim)
        return kl.mul_(_without(t_teacher * t_student, student, dim) * scale if with_factor else scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, *tensors = ctx.saved_tensors
        given = [tensors.pop(0) if number is None else number for number in ctx.numbers]
        dtype = compute_dtype(student, teacher)
        t_teacher, t_student = (_cast(t, dtype) for t in given)
        log_q, log_p = _log_softmaxes(student, teacher, t_teacher, t_student, ctx.dim)

        grad_temperatures = [None, None]
        if any(ctx.needs_input_grad[2:4]):
            derivatives = _temperature_derivatives(log_p, log_q, t_teacher, t_student, ctx.with_factor, ctx.dim)
            for side, (t, derivative) in enumerate(zip(given, derivatives)):
                if ctx.needs_input_grad[2 + side]:
                    grad = (grad_output.unsqueeze(ctx.dim) * derivative).mul_(ctx.scale)
                    grad_temperatures[side] = grad.sum_to_size(t.shape).to(t.dtype)

        grad_student = None
        if ctx.needs_input_grad[0]:
            grad_student = log_q.exp_().sub_(log_p.exp_())
            factor = _without(t_teacher if ctx.with_factor else 1 / t_student, student, ctx.dim)
            grad_student.mul_((grad_output * (factor * ctx.scale)).unsqueeze(ctx.dim))
            grad_student = grad_student.to(student.dtype)
        return grad_student, None, *grad_temperatures, None, None, None


def _temperature_derivatives(
    log_p: Tensor, log_q: Tensor, t_teacher: float | Tensor, t_student: float | Tensor, with_factor: bool, dim: int
) -> tuple[Tensor, Tensor]:
    """
    dl/dT_t and dl/dT_s, axis ``dim`` kept, of l = T_t T_s KL (or KL alone). With a = ln p - ln q:

        dKL/dT_t = - Cov_p(a, ln p) / T_t      dKL/dT_s = - sum_b (q_b - p_b) ln q_b / T_s
    """
    p = log_p.exp()
    a = log_p - log_q
    kl = (p * a).sum(dim, keepdim=True)
    covariance = (p * a * (log_p - (p * log_p).sum(dim, keepdim=True))).sum(dim, keepdim=True)
    moment = ((log_q.exp() - p) * log_q).sum(dim, keepdim=True)
    if with_factor:
        return t_student * (kl - covariance), t_teacher * (kl - moment)
    return -covariance / t_teacher, -moment / t_student


def _cast(temperature: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return temperature.to(dtype) if isinstance(temperature, Tensor) else temperature


def _without(factor: float | Tensor, logits: Tensor, dim: int) -> float | Tensor:
    """A factor per location without the axis of the softmax, where it has that axis."""
    axis = dim - logits.dim()
    return factor.squeeze(axis) if isinstance(factor, Tensor) and factor.dim() >= -axis else factor


def _log_softmaxes(
    student: Tensor, teacher: Tensor, t_teacher: float | Tensor, t_student: float | Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(student, teacher)
    return tuple(log_softmax(x.to(dtype) / t, dim) for x, t in ((student, t_student), (teacher, t_teacher)))


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """``x.log_softmax(dim)`` without a copy of a dense ``x`` that is not contiguous, in its own layout."""
    # Torch's softmax copies a tensor that is not contiguous, such as the view of a channels-last map. Seen with its
    # axes in the order of memory, the quotient above is contiguous.
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    result = x.permute(order).log_softmax(order.index(dim))
    return result.permute([order.index(axis) for axis in range(x.dim())])


def check_inputs(
    caller: str, student: Tensor, teacher: Tensor, temperature: float | Tensor, bin_reduction: str, dim: int
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
    _check_temperature(caller, "temperature", temperature, student.shape, dim)
    if bin_reduction not in BIN_REDUCTIONS:
        raise ValueError(f'{caller}: bin_reduction must be "mean" or "sum", found {bin_reduction!r}')


def _check_temperature(caller: str, name: str, temperature: float | Tensor, shape: torch.Size, dim: int) -> None:
    if not isinstance(temperature, Tensor):
        check_positive(caller, name, temperature)
        return
    check_floating(caller, **{name: temperature})
    wanted = list(shape)
    wanted[dim] = 1
    sizes = [1] * (len(shape) - temperature.dim()) + list(temperature.shape)
    if len(sizes) != len(wanted) or any(size not in (1, want) for size, want in zip(sizes, wanted)):
        raise ValueError(
            f"{caller}: {name} must broadcast to {tuple(wanted)}, the logits' shape with size 1 on the axis of the "
            f"softmax, found {tuple(temperature.shape)}"
        )
