"""FTPD's dynamic localisation temperature on plain heads, whose boxes have no distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_choice, check_number, compute_dtype, drop_unweighted, weigh_and_reduce
from d2kd.losses.laplace_kl import laplace_kl
from d2kd.regions.quality import QUALITY
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["DynamicBoxKD", "weighted_median"]

_KINDS = ("residual", "fixed")


@torch.no_grad()
def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """
    The smallest value that with all smaller ones has half of the weight or more.

    Args:
        values: (C, M), C rows.
        weights: (M,) of a row's values, >= 0.

    Returns:
        (C,); NaN where there is no weight.
    """
    if values.shape[1] == 0:
        return values.new_full((len(values),), float("nan"))
    values, order = values.sort(dim=1)
    below = weights.double()[order].cumsum(dim=1)
    total = below[:, -1:]
    index = torch.searchsorted(below, total / 2).clamp(max=values.shape[1] - 1)
    median = values.gather(1, index).squeeze(1)
    return median.masked_fill(~(total.squeeze(1) > 0), float("nan"))


@LOSS_REGISTRY.register()
class DynamicBoxKD(DistillationLoss):
    """
    :func:`laplace_kl` over the box parameters of plain heads, averaged over a location's four coordinates: FTPD's
    localisation term without distributions, with this library's choice of region and normaliser (after Song et al.,
    reconstructed from the abstract and related work). With distributions: :class:`DynamicLocalizationDistillation`.

    Parameters are compared as the head codes them, so both detectors are of one family; distances that are decoded
    through a ReLU (FCOS's) are compared behind it.

    Args:
        kind: where T comes from: "residual" (for each coordinate the :func:`weighted_median` of D over all locations,
            weighted by the region: the knee follows the gap between student and teacher; a constant of the step, made
            of this rank's batch) or "fixed" (``temperature``).
        t_min, t_max: bounds of "residual", 0 < t_min < t_max, in the unit of the parameters.
        momentum: of the running mean of the median, in [0, 1); the first step takes its median, an empty region
            changes nothing.
        temperature: T of "fixed", > 0; 0.1 is the knee of the smooth L1 of Detectron2's RetinaNet.
        region, normalizer, kwargs: see :class:`DistillationLoss`.

    Example:
        >>> DynamicBoxKD(momentum=0.5)  # doctest: +ELLIPSIS
        DynamicBoxKD(weight=1.0, ..., kind=residual, t_min=0.01, t_max=1.0, momentum=0.5, temperature=0.1)
    """

    task = "box"

    #: (4,): T of each coordinate in "residual", saved with the model; 0: no step yet.
    running_temperature: Tensor

    def __init__(
        self,
        *,
        kind: str = "residual",
        t_min: float = 0.01,
        t_max: float = 1.0,
        momentum: float = 0.9,
        temperature: float = 0.1,
        region: str | Mapping[str, Any] = QUALITY,
        normalizer: str = "locations",
        **kwargs: Any,
    ) -> None:
        super().__init__(region=region, normalizer=normalizer, **kwargs)
        name = type(self).__name__
        check_choice(name, "kind", kind, _KINDS)
        check_number(name, "t_min", t_min)
        check_number(name, "t_max", t_max, above=t_min, meaning="t_min")
        check_number(name, "momentum", momentum, at_least=0, below=1)
        check_number(name, "temperature", temperature)
        self.kind = kind
        self.t_min = t_min
        self.t_max = t_max
        self.momentum = momentum
        self.temperature = temperature
        if kind == "residual":
            self.register_buffer("running_temperature", torch.zeros(4))

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        who = f"{self.source} ({source.family}) and the teacher ({teacher.family})"
        if source.bins is not None or teacher.bins is not None:
            raise ValueError(
                f"DynamicBoxKD compares four numbers a box, but {who} have {source.bins or 'no'} and "
                f"{teacher.bins or 'no'} bins of a distribution for each: use DynamicLocalizationDistillation, which "
                "needs equal bins on both sides."
            )
        if source.family != teacher.family:
            raise ValueError(
                f"DynamicBoxKD compares box parameters as the heads code them, but {who} code them each in their own "
                "way: take detectors of one family, or IoULocalizationKD, which compares decoded boxes."
            )
        if source.box_coding != teacher.box_coding:
            raise ValueError(
                f"DynamicBoxKD compares box parameters as the heads code them, but the {self.source} codes them by "
                f"{source.box_coding} and the teacher by {teacher.box_coding}: give both one box2box_transform "
                "(model.student.box2box_transform, model.teacher.model.box2box_transform; in a yacs config: "
                "MODEL.RPN.BBOX_REG_WEIGHTS or MODEL.RETINANET.BBOX_REG_WEIGHTS), or take IoULocalizationKD, which "
                "compares decoded boxes."
            )

    def forward(self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor]) -> Tensor:
        """See :class:`DistillationLoss`; the median of "residual" is over all levels, so it comes before their sums."""
        if self.kind == "residual":
            self._update_temperature(source, teacher, region)
        return super().forward(source, teacher, region)

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        temperature: float | Tensor = self.temperature
        if self.kind == "residual":
            # A copy: the next step writes on the buffer, maybe before this one's backward pass.
            temperature = self.running_temperature.view(4, 1, 1).clone()
        region, *params = drop_unweighted(region, _params(source, level), _params(teacher, level))
        coordinates = laplace_kl(*params, temperature=temperature)
        return weigh_and_reduce(type(self).__name__, coordinates.mean(dim=2), region, "sum")

    @torch.no_grad()
    def _update_temperature(self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor]) -> None:
        """Update the running mean of the median distance."""
        distances, weights = [], []
        for level, weight in enumerate(region):
            weight, ours, theirs = drop_unweighted(weight, _params(source, level), _params(teacher, level))
            dtype = compute_dtype(ours, theirs)
            distances.append((ours.to(dtype) - theirs.to(dtype)).abs_().movedim(2, 0).flatten(1))
            weights.append(weight.flatten())
        median = weighted_median(torch.cat(distances, dim=1), torch.cat(weights)).clamp_(self.t_min, self.t_max)
        old = self.running_temperature
        new = torch.where(old > 0, self.momentum * old + (1 - self.momentum) * median, median)
        old.copy_(torch.where(median.isnan(), old, new))  # NaN: an empty region

    def extra_repr(self) -> str:
        fields = ("kind", "t_min", "t_max", "momentum", "temperature")
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])


def _params(output: DenseOutput, level: int) -> Tensor:
    """One level's box parameters, (N, A, 4, H, W), as decoding reads them."""
    params = output.box_params[level]
    return params.relu() if output.rectified else params
