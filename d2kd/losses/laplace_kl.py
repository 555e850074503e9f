"""Kullback-Leibler divergence between two Laplace distributions: FTPD's localisation kernel on plain heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.kernel import Context, check_broadcast, check_inputs, compute_dtype, weigh_and_reduce
from d2kd.losses.one_pass import block_size, blocks

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
    """
    The formula and its gradient, the one map that is kept for the backward pass.

    With r = D / T, s = 1 - exp(-r) is the slope and D - T s the loss. Where r is small both lose digits. There, with
    B = 1/s - 1/r = 1/2 + r/12 - r^3/720 + ..., they are r / (1 + r B) and D s B.
    """

    @staticmethod
    def forward(ctx: Context, student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
        loss, grad = torch.empty_like(student), torch.empty_like(student)
        maps = (student, teacher, temperature.expand_as(student), loss, grad)
        for block in blocks(maps, block_size(student.device)):
            _write_loss_and_slope(*block)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_output, None, None


def _write_loss_and_slope(student: Tensor, teacher: Tensor, temperature: Tensor, loss: Tensor, slope: Tensor) -> None:
    distance = torch.abs(torch.sub(student, teacher, out=slope), out=loss)
    ratio = distance / temperature
    # As far as the dtype does not see the next term of B.
    bound = 0.02 if ratio.dtype == torch.float64 else 0.35
    small = ratio.clamp(max=bound)
    b = torch.addcmul(small.new_full((), 1 / 12), small, small, value=-1 / 720)
    b = torch.addcmul(small.new_full((), 1 / 2), b, small)
    slope_of_small = small / (small * b).add_(1)
    loss_of_small = b.mul_(slope_of_small).mul_(distance)
    # A number, since to choose by booleans takes as long as all of this on a CPU.
    is_large = torch.gt(ratio, bound, out=small)
    slope_of_large = ratio.neg_().exp_().neg_().add_(1)
    torch.lerp(loss_of_small, distance.sub_(temperature * slope_of_large), is_large, out=loss)
    slope.sign_().mul_(slope_of_small.lerp_(slope_of_large, is_large))
