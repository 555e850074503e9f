"""Kullback-Leibler divergence between two Laplace distributions: FTPD's localisation kernel on plain heads."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from d2kd.losses.kernel import check_floating, check_inputs, check_number, compute_dtype
from d2kd.losses.one_pass import one_pass

__all__ = ["laplace_kl"]


def laplace_kl(
    student_params: Tensor,
    teacher_params: Tensor,
    *,
    temperature: float | Tensor,
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    T times the Kullback-Leibler divergence between two Laplace distributions of scale T around what student and teacher
    predict for a coordinate, sum over the coordinates of a location.

        D_c = |student_c - teacher_c|                            l = weight * sum_c T_c (exp(-D_c/T_c) + D_c/T_c - 1)
        dl/dstudent_c = +-weight (1 - exp(-D_c/T_c))

    D^2 / 2T for D far below T, D - T far above: a smooth L1 whose knee is the temperature, with slopes below 1.

    What the dynamic localisation temperature of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025) may be on a head without
    distributions. *Reconstructed*: only the abstract is public, and this form is this library's alone.

    It is computed without cancellation where D is a millionth of T and without overflow where it is a million times T.
    The gradient is computed with the loss: one map is kept for the backward pass.

    Args:
        student_params: box parameters in the head's own coding, any shape with the coordinates on axis ``dim``, for
            instance the head's own map seen as (N, A, 4, H, W) with ``dim=2``.
        teacher_params: same shape.
        temperature: T > 0, in the unit of the parameters: a number, or a tensor with one for each coordinate, detached.
            A tensor's values are not looked at.
        weight, dim, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss, in the unit of the parameters.

    Raises:
        ValueError: see :mod:`d2kd.losses`; a number for ``temperature`` that is not above 0, or a tensor that is not
            one for each coordinate.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.1, 1.0]]), torch.zeros(1, 3)
        >>> laplace_kl(student, teacher, temperature=0.1)
        tensor([0.9368])
    """
    check_inputs("laplace_kl", dim, student_params=student_params, teacher_params=teacher_params)
    dtype = compute_dtype(student_params, teacher_params)
    if isinstance(temperature, Tensor):
        check_floating("laplace_kl", temperature=temperature)
        expected = (student_params.shape[dim],)
        if temperature.shape != expected:
            raise ValueError(
                f"laplace_kl: temperature must be one for each coordinate, expected {expected}, found "
                f"{tuple(temperature.shape)}"
            )
        temperature = temperature.detach().to(dtype)
    else:
        check_number("laplace_kl", "temperature", temperature)
        temperature = student_params.new_full((), temperature, dtype=dtype)
    return one_pass(
        "laplace_kl",
        partial(_loss_and_slope, temperature.neg()),
        student_params,
        teacher_params,
        spare=4,
        across_classes=True,  # a block has all temperatures
        weight=weight,
        dim=dim,
        reduction=reduction,
    )


def _loss_and_slope(minus_t: Tensor, student: Tensor, teacher: Tensor, *spare: Tensor) -> tuple[Tensor, Tensor]:
    """
    With r = D / T, s = 1 - exp(-r) is the slope and D - T s the loss. Where r is small both lose digits. There, with
    B = 1/s - 1/r = 1/2 + r/12 - r^3/720 + ..., they are r / (1 + r B) and D s B.
    """
    minus_r, small, b, slope_of_small = spare
    difference = student.sub_(teacher)
    distance = torch.abs(difference, out=teacher)
    torch.div(distance, minus_t, out=minus_r)
    # As far as the dtype does not see the next term of B.
    bound = -0.02 if minus_r.dtype == torch.float64 else -0.35
    torch.clamp(minus_r, min=bound, out=small)
    torch.addcmul(_TWELFTH, small, small, value=-1 / 720, out=b)
    torch.addcmul(_HALF, b, small, value=-1, out=b)
    torch.addcmul(_MINUS_ONE, b, small, out=slope_of_small)
    torch.div(small, slope_of_small, out=slope_of_small)
    loss_of_small = b.mul_(slope_of_small).mul_(distance)
    # A number, since to choose by booleans takes as long as all of this on a CPU.
    is_large = torch.lt(minus_r, bound, out=small)
    slope_of_large = minus_r.exp_().neg_().add_(1)
    loss = loss_of_small.lerp_(distance.addcmul_(slope_of_large, minus_t), is_large)
    return loss, slope_of_small.lerp_(slope_of_large, is_large).copysign_(difference)


# Scalars, on any device.
_TWELFTH, _HALF, _MINUS_ONE = torch.tensor((1 / 12, 1 / 2, -1), dtype=torch.float64, device="cpu").unbind()
