"""Kullback-Leibler divergence between two Laplace distributions: FTPD's localisation kernel on plain heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.kernel import Context, check_broadcast, check_inputs, compute_dtype, weigh_and_reduce

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
    T times the Kullback-Leibler divergence between two Laplace distributions of scale T around what student and teacher
    predict for a coordinate.

        D = |student - teacher|      l = weight * T (exp(-D/T) + D/T - 1)      dl/dstudent = +-weight (1 - exp(-D/T))

    D^2 / 2T for D far below T, D - T far above: a smooth L1 whose knee is the temperature, with slopes below 1.

    What the dynamic localisation temperature of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025) may be on a head without
    distributions. *Reconstructed*: only the abstract is public, and this form is this library's alone.

    It is computed without cancellation where D is a millionth of T and without overflow where it is a million times T.

    Args:
        student_params: box parameters in the head's own coding, any shape.
        teacher_params: same shape.
        temperature: T > 0, in the unit of the parameters: a number, or a tensor that broadcasts to their shape,
            detached. A tensor's values are not looked at.
        weight, reduction: see :mod:`d2kd.losses`; a location is a coordinate.

    Returns:
        The loss, in the unit of the parameters.

    Raises:
        ValueError: see :mod:`d2kd.losses`; a tensor for ``temperature`` that does not broadcast.

    Example:
        >>> student, teacher = torch.tensor([0.0, 0.1, 1.0]), torch.zeros(3)
        >>> laplace_kl(student, teacher, temperature=0.1)
        tensor([0.0000, 0.0368, 0.9000])
    """
    check_inputs("laplace_kl", student_params=student_params, teacher_params=teacher_params)
    dtype = compute_dtype(student_params, teacher_params)
    student, teacher = student_params.to(dtype), teacher_params.detach().to(dtype)
    if isinstance(temperature, Tensor):
        check_broadcast("laplace_kl", "temperature", temperature, student.shape)
        temperature = temperature.detach().to(dtype)
    else:
        temperature = student.new_full((), temperature)
    return weigh_and_reduce("laplace_kl", _LaplaceKL.apply(student, teacher, temperature), weight, reduction)


class _LaplaceKL(torch.autograd.Function):
    """The formula with its analytic gradient."""

    @staticmethod
    def forward(ctx: Context, student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
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
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, temperature = ctx.saved_tensors
        difference = student - teacher
        ratio = difference.abs() / temperature
        return -grad_output * difference.sign() * torch.expm1(-ratio), None, None
