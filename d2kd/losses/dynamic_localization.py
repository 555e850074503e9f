"""FTPD's dynamic localisation temperature on distribution heads: a temperature for each edge of each location."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import (
    check_choice,
    check_integer,
    check_number,
    compute_dtype,
    drop_unweighted,
    weigh_and_reduce,
)
from d2kd.losses.learned_temperature import LearnedTemperature
from d2kd.losses.localization_distillation import check_equal_bins
from d2kd.losses.temperature_kl import temperature_kl
from d2kd.regions.quality import QUALITY
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["DynamicLocalizationDistillation", "dynamic_localization_kd", "std_temperature"]

_KINDS = ("std", "learned", "fixed")


def dynamic_localization_kd(
    student_bins: Tensor,
    teacher_bins: Tensor,
    *,
    temperature: float | Tensor,
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    Kullback-Leibler divergence between the distributions that student and teacher predict for a box edge, each edge at
    its own temperature.

    With p = softmax(teacher / T), q = softmax(student / T) over the n + 1 bins of one edge i:

        l_i = weight_i * T_i^2 * sum_b p_ib (ln p_ib - ln q_ib)

    The dynamic localisation temperature (DLT) of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025), *reconstructed*: only
    the abstract is public. It says that the localisation branch has a dynamic temperature, to transfer localisation
    more precisely and without setting one by hand; the formula, the temperatures and all numbers here are this
    library's, after related work.

    Student and teacher share the temperature, so that equal bins are the minimum. With a temperature each, a student
    whose bins are the teacher's times a factor would have no loss, though its expected edge, and so its box, is
    another.

    Without ``weight``, at one fixed temperature, n + 1 times :func:`d2kd.losses.localization_distillation`, which takes
    the mean over bins.

    Args:
        student_bins: raw logits, any shape with the n + 1 bins of an edge on axis ``dim``, for instance the head's own
            map seen as (N, A, 4, n+1, H, W) with ``dim=3``.
        teacher_bins: raw logits, same shape.
        temperature: T > 0: a number, or a tensor with size 1 on axis ``dim``, see :func:`d2kd.losses.temperature_kl`.
        weight, dim, reduction: see :mod:`d2kd.losses`; a location is an edge.

    Returns:
        The loss in nats times the squared unit of the logits.

    Raises:
        ValueError: see :func:`d2kd.losses.temperature_kl`, which computes it.

    Example:
        >>> student, teacher = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 2.0], [0.0, 10.0, 20.0]])
        >>> dynamic_localization_kd(student, teacher, temperature=torch.tensor([[1.0], [10.0]]))
        tensor([ 0.2662, 26.6217])
    """
    return temperature_kl(
        student_bins,
        teacher_bins,
        temperature=temperature,
        bin_reduction="sum",
        weight=weight,
        dim=dim,
        reduction=reduction,
    )


@torch.no_grad()
def std_temperature(bins: Tensor, *, kappa: float, t_min: float, t_max: float, dim: int = -1) -> Tensor:
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
        T, the shape of ``bins`` with size 1 on axis ``dim``, detached. Not finite where a logit is not.
    """
    # Not std(), which on a CPU takes as long as the whole loss where the bins do not lie next to one another.
    deviations = bins - bins.mean(dim, keepdim=True, dtype=compute_dtype(bins))
    return deviations.square_().mean(dim, keepdim=True).sqrt_().mul_(kappa).clamp_(t_min, t_max)


@LOSS_REGISTRY.register()
class DynamicLocalizationDistillation(DistillationLoss):
    """
    :func:`dynamic_localization_kd` over the edge distributions of dense outputs, averaged over a location's four
    edges: FTPD's localisation term on distribution heads, with this library's choice of region and normaliser (after
    Song et al., reconstructed from the abstract and related work). Plain heads: :class:`DynamicBoxKD`.

    Both detectors need a distribution head with the same number of bins.

    Args:
        kind: where T comes from: "std" (:func:`std_temperature` of the teacher's bins, a constant of the step),
            "learned" (:class:`LearnedTemperature`: a parameter of this loss, one for all edges) or "fixed"
            (``temperature``, as LD; for comparison).
        kappa: factor of "std", > 0.
        t_min, t_max: bounds of "std", 0 < t_min < t_max, in the unit of the logits.
        temperature: T of "fixed", > 0.
        learn_iters, t_start, t_span: of "learned", see :class:`LearnedTemperature`.
        region, normalizer, kwargs: see :class:`DistillationLoss`.
    """

    task = "box"

    def __init__(
        self,
        *,
        kind: str = "std",
        kappa: float = 1.0,
        t_min: float = 1.0,
        t_max: float = 10.0,
        temperature: float = 10.0,
        learn_iters: int = 4500,
        t_start: float = 1.0,
        t_span: float = 20.0,
        region: str | Mapping[str, Any] = QUALITY,
        normalizer: str = "locations",
        **kwargs: Any,
    ) -> None:
        super().__init__(region=region, normalizer=normalizer, **kwargs)
        name = type(self).__name__
        check_choice(name, "kind", kind, _KINDS)
        check_number(name, "kappa", kappa)
        check_number(name, "t_min", t_min)
        check_number(name, "t_max", t_max, above=t_min, meaning="t_min")
        check_number(name, "temperature", temperature)
        check_integer(name, "learn_iters", learn_iters, at_least=0)
        check_number(name, "t_start", t_start)
        check_number(name, "t_span", t_span)
        self.kind = kind
        self.kappa = kappa
        self.t_min = t_min
        self.t_max = t_max
        self.temperature = temperature
        self.learn_iters = learn_iters
        self.t_start = t_start
        self.t_span = t_span
        self.learned_temperature = (
            LearnedTemperature(learn_iters=learn_iters, t_start=t_start, t_span=t_span) if kind == "learned" else None
        )

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        check_equal_bins(self, source, teacher, "or use DynamicBoxKD where neither has one")

    def temperature_of(self, teacher_bins: Tensor) -> float | Tensor:
        """T of one level's bins, (..., 4, n+1, H, W): a number, or a tensor that broadcasts to (..., 4, 1, H, W)."""
        if self.learned_temperature is not None:
            return self.learned_temperature(self.iteration)
        if self.kind == "fixed":
            return self.temperature
        return std_temperature(teacher_bins, kappa=self.kappa, t_min=self.t_min, t_max=self.t_max, dim=-3)

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        region, student_bins, teacher_bins = drop_unweighted(
            region, source.box_params[level], teacher.box_params[level]
        )
        temperature = self.temperature_of(teacher_bins)
        edges = dynamic_localization_kd(student_bins, teacher_bins, temperature=temperature, dim=3)
        return weigh_and_reduce(type(self).__name__, edges.mean(dim=2), region, "sum")

    def extra_repr(self) -> str:
        fields = ("kind", "kappa", "t_min", "t_max", "temperature", "learn_iters", "t_start", "t_span")
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])
