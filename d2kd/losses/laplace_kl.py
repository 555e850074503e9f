"""Kullback-Leibler divergence between two Laplace laws: the kernel of FTPD's localisation term on plain heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import (
    check_floating,
    check_positive,
    check_reduction,
    check_weight,
    compute_dtype,
    weigh_and_reduce,
)

__all__ = ["laplace_kl"]


def laplace_kl(
    student_params: Tensor,
    teacher_params: Tensor,
    *,
    temperature: float | Tensor,
    weight: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """
    T times the Kullback-Leibler divergence between two Laplace laws of scale T around what student and teacher predict
    for a coordinate.

        D = |student - teacher|      l = T (exp(-D/T) + D/T - 1)      dl/dstudent = +-(1 - exp(-D/T))

    D^2 / 2T for D far below T, D - T far above: a smooth L1 whose knee is the temperature, with slopes below 1.

    What the dynamic localisation temperature of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025) may be on a head without
    distributions. *Reconstructed*: only the abstract is public, and this form is this library's alone.

    The teacher is detached. Non-finite parameters make their coordinate's loss non-finite. Computed in float32 whatever
    the input dtype or autocast (float64 stays float64), without cancellation where D is a millionth of T and without
    overflow where it is a million times T.

    Args:
        student_params: box parameters in the head's own coding, any shape.
        teacher_params: same shape.
        temperature: T > 0, in the unit of the parameters: a number, or a tensor that broadcasts to their shape. A
            tensor that requires grad gets its gradient; its values are not looked at.
        weight: a factor per coordinate, of the inputs' shape; detached.
        reduction: "none", "sum" or "mean" over coordinates (not a weighted mean; zero if there are none).

    Returns:
        The loss, in the unit of the parameters: of their shape for "none", else a scalar. float32, or float64 if an
        input is float64.

    Raises:
        ValueError: shapes that differ, a non-floating dtype, a ``temperature`` that is neither a finite number > 0 nor
            a tensor as above, an unknown ``reduction``, a ``weight`` of another shape or one that requires grad.
    """
    caller = "laplace_kl"
    shape = student_params.shape
    if shape != teacher_params.shape:
        raise ValueError(
            f"{caller}: student_params and teacher_params must have the same shape, found {tuple(shape)} and "
            f"{tuple(teacher_params.shape)}"
        )
    check_floating(caller, student_params=student_params, teacher_params=teacher_params)
    dtype = compute_dtype(student_params, teacher_params)
    if isinstance(temperature, Tensor):
        check_floating(caller, temperature=temperature)
        sizes = zip(reversed(temperature.shape), reversed(shape))
        if temperature.dim() > len(shape) or any(size not in (1, want) for size, want in sizes):
            raise ValueError(
                f"{caller}: temperature must broadcast to the parameters' shape {tuple(shape)}, found "
                f"{tuple(temperature.shape)}"
            )
        temperature = temperature.to(dtype)
    else:
        check_positive(caller, "temperature", temperature)
        temperature = torch.tensor(temperature, dtype=dtype, device=student_params.device)
    check_reduction(caller, reduction, ("none", "sum", "mean"))
    check_weight(caller, weight, shape, "the parameters' shape")
    return weigh_and_reduce(
        _LaplaceKL.apply(student_params.to(dtype), teacher_params.detach().to(dtype), temperature), weight, reduction
    )


class _LaplaceKL(torch.autograd.Function):
    """The formula with its analytic gradient, also into T: dl/dT = (1 + D/T) exp(-D/T) - 1."""

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher, temperature)
        distance = (student - teacher).abs_()
        ratio = distance / temperature
        # Below a tenth the difference of exp(-r) and 1 - r loses digits: there its series, to the first term that the
        # dtype does not see. Above, as D - T (1 - exp(-r)), the ratio may overflow.
        series = ratio / 720
        for coefficient in (-1 / 120, 1 / 24, -1 / 6):
            series = series.add_(coefficient).mul_(ratio)
        series = series.add_(1 / 2).mul_(ratio).mul_(distance)
        small = ratio < (0.01 if ratio.dtype == torch.float64 else 0.1)
        return torch.where(small, series, distance + temperature * torch.expm1(-ratio))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, temperature = ctx.saved_tensors
        difference = student - teacher
        ratio = difference.abs() / temperature
        rest = torch.expm1(-ratio)
        grad_student = -grad_output * difference.sign() * rest
        grad_temperature = None
        if ctx.needs_input_grad[2]:
            # exp(-r) is zero long before r is too large a factor
            grad_temperature = grad_output * (rest + ratio.clamp(max=1e4) * torch.exp(-ratio))
            grad_temperature = grad_temperature.sum_to_size(temperature.shape)
        return grad_student, None, grad_temperature
