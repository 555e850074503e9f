"""FTPD's dynamic localisation temperature on plain heads, whose boxes have no distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_choice, check_number, compute_dtype, drop_unweighted
from d2kd.losses.laplace_kl import laplace_kl
from d2kd.regions.quality import QUALITY
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["DynamicBoxKD", "weighted_median"]

_KINDS = ("residual", "fixed")


#: Of an int64 sum of weights, whose unit is 2^-32: sums of whole numbers do not depend on the order.
_WEIGHT_UNIT = 2.0**-32


@torch.no_grad()
def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """
    The smallest value that with all smaller ones has half of the weight or more, over all processes, each of which must
    call this. Exact in float32 and the same in every run, on a GPU too.

    Args:
        values: (C, M), C rows of numbers >= 0.
        weights: (M,) of a row's values, >= 0, read to 2^-32.

    Returns:
        (C,) float32; NaN where there is no weight.
    """
    # Not a sort, which takes twenty times as long. The bits of such numbers have their order: a count of the upper half
    # of the bits finds the median's, then a count of the numbers that share them finds the lower half.
    codes = values.float().contiguous().view(torch.int32)
    units = (weights.double() / _WEIGHT_UNIT).round_().long()
    found = codes.new_zeros(len(codes), 1)
    bins = codes.new_empty(codes.shape[1])  # of one row at a time, so that they stay in the processor's cache
    for shift, size in ((16, 1 << 15), (0, 1 << 16)):
        # The first bin is of all that is smaller, the last of all that is larger.
        counts = units.new_zeros(len(codes), size + 2)
        for row, code, start in zip(counts, codes, found):
            torch.sub(code, start, out=bins).bitwise_right_shift_(shift).clamp_(-1, size).add_(1)
            row.index_add_(0, bins, units)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        below = counts.cumsum(dim=1)
        total = below[:, -1:].contiguous()
        index = torch.searchsorted(below, (total + 1) // 2, out_int32=True)
        found += (index - 1) << shift
    return found.view(torch.float32).masked_fill_(total == 0, float("nan")).squeeze(1)


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
            of the batches of all ranks) or "fixed" (``temperature``).
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
        levels = [_read(source, teacher, level, weight) for level, weight in enumerate(region)]
        if self.kind == "residual":
            self._update_temperature(levels)
        return torch.stack([self._weighted_sum(*level) for level in levels])

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """At the temperature of the last step."""
        return self._weighted_sum(*_read(source, teacher, level, region))

    def _weighted_sum(self, region: Tensor, student_params: Tensor, teacher_params: Tensor) -> Tensor:
        # A copy: the next step writes on the buffer, maybe before this one's backward pass.
        temperature = self.temperature if self.kind == "fixed" else self.running_temperature.clone()
        # The mean over coordinates.
        return laplace_kl(
            student_params, teacher_params, temperature=temperature, weight=region / 4, dim=2, reduction="sum"
        )

    @torch.no_grad()
    def _update_temperature(self, levels: Sequence[tuple[Tensor, ...]]) -> None:
        """Update the running mean of the median distance."""
        weights = [region.flatten() for region, *_ in levels]
        sizes = [len(x) for x in weights]
        dtype = compute_dtype(*(params for _, *pair in levels for params in pair))
        distances = weights[0].new_empty(4, sum(sizes), dtype=dtype)
        for (_, *pair), part in zip(levels, distances.split(sizes, dim=1)):
            ours, theirs = (x.to(dtype).movedim(2, 0) for x in pair)
            torch.sub(ours, theirs, out=part.view(ours.shape)).abs_()
        median = weighted_median(distances, torch.cat(weights)).clamp_(self.t_min, self.t_max)
        old = self.running_temperature
        new = torch.where(old > 0, self.momentum * old + (1 - self.momentum) * median, median)
        old.copy_(torch.where(median.isnan(), old, new))  # NaN: an empty region

    def extra_repr(self) -> str:
        fields = ("kind", "t_min", "t_max", "momentum", "temperature")
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])


def _read(source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> tuple[Tensor, ...]:
    """
    One level's region and both sides' box parameters, (N, A, 4, H, W), as decoding reads them; of few locations as
    :func:`drop_unweighted` returns them.
    """
    params = (x.box_params[level].relu() if x.rectified else x.box_params[level] for x in (source, teacher))
    return drop_unweighted(region, *params)
