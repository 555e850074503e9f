"""Temperatures made of the distributions of box edges themselves, for FTPD's localisation term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2kd.losses.kernel import compute_dtype
from d2kd.losses.temperature_kl import log_softmax

__all__ = ["entropy_temperature", "sharpness_temperatures", "std_temperature"]


@torch.no_grad()
def std_temperature(
    bins: Tensor, *, kappa: float = 1.0, t_min: float = 1.0, t_max: float = 10.0, dim: int = -1
) -> Tensor:
    """
    T = clip(kappa * std_b(z_b), t_min, t_max), the population's standard deviation of an edge's logits: sharp
    distributions are softened more than flat ones, and nothing is set by hand.

    The temperature of "Logit Standardization in Knowledge Distillation" (CVPR 2024) and of "NormKD" (arXiv
    2308.00520), there for class logits.

    Args:
        bins: raw logits with an edge's bins on axis ``dim``.
        kappa: factor, > 0.
        t_min, t_max: bounds, 0 < t_min < t_max, in the unit of the logits.
        dim: the axis of the bins.

    Returns:
        T, the shape of ``bins`` with size 1 on axis ``dim``; float32, or float64 if ``bins`` is. Not finite where a
        logit is not.
    """
    # Not std(), which on a CPU takes as long as the whole loss where the bins do not lie next to one another.
    deviations = bins - bins.mean(dim, keepdim=True, dtype=compute_dtype(bins))
    return deviations.square_().mean(dim, keepdim=True).sqrt_().mul_(kappa).clamp_(t_min, t_max)


@torch.no_grad()
def entropy_temperature(bins: Tensor, *, t_min: float = 1.0, t_max: float = 10.0, dim: int = -1) -> Tensor:
    """
    T = t_min + (t_max - t_min) * (1 - H(softmax(z)) / ln(B)): t_min for a flat distribution over its B bins, t_max for
    a certain one. This library's own alternative.

    Args, returns: see :func:`std_temperature`.

    Raises:
        ValueError: one bin, whose entropy says nothing.
    """
    if bins.shape[dim] < 2:
        raise ValueError(f"entropy_temperature: an edge needs two bins at least, found {tuple(bins.shape)}, axis {dim}")
    log_p = log_softmax(bins.to(compute_dtype(bins)), dim % bins.dim())
    certainty = 1 + log_p.exp().mul_(log_p).sum(dim, keepdim=True) / math.log(bins.shape[dim])
    return certainty.clamp_(0, 1).mul_(t_max - t_min).add_(t_min)


@torch.no_grad()
def sharpness_temperatures(
    teacher_bins: Tensor,
    student_bins: Tensor,
    *,
    tau: float = 4.0,
    t_min: float = 1.0,
    t_max: float = 10.0,
    dim: int = -1,
) -> tuple[Tensor, Tensor]:
    """
    The sharper of the two is softened more: with x = max_b(t_b) - mean_b(t_b) and y the same of the student,

        T_teacher = tau * 2x / (x + y)      T_student = tau * 2y / (x + y)      (both tau if x = y)

    After "Dynamic Temperature Knowledge Distillation" (DTKD, arXiv 2404.12711), tau = 4. Two things differ. There x
    and y are the plain maxima: logits of class scores have a zero, but those of an edge's distribution may be shifted
    by any constant, which the plain maximum follows, even to temperatures below zero; the centred one does not. And
    the bounds are this library's: a flat distribution (x = 0) would have the temperature zero. Erratum: DTKD's authors
    state beside their code that the paper's derivation of this closed form is wrong, while its results stand; it is a
    rule of thumb.

    Args:
        teacher_bins, student_bins: raw logits of one shape, an edge's bins on axis ``dim``.
        tau: mean of the two temperatures before the bounds, > 0.
        t_min, t_max, dim: see :func:`std_temperature`.

    Returns:
        T of the teacher and T of the student, shaped as that of :func:`std_temperature`.
    """
    dtype = compute_dtype(teacher_bins, student_bins)
    x, y = (
        (z.amax(dim, keepdim=True).to(dtype) - z.mean(dim, keepdim=True, dtype=dtype)).clamp_(min=0)
        for z in (teacher_bins, student_bins)
    )
    total = x + y
    return tuple(torch.where(total == 0, 1, 2 * z / total).mul_(tau).clamp_(t_min, t_max) for z in (x, y))
