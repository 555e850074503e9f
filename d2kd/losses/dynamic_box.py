"""FTPD's dynamic localisation temperature on plain heads, whose boxes have no distribution: that of a Laplace law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_number, compute_dtype, drop_unweighted, weigh_and_reduce
from d2kd.losses.laplace_kl import laplace_kl
from d2kd.losses.learned_temperature import LearnedTemperature
from d2kd.regions.quality import QUALITY
from d2kd.structures import Assignment, DenseOutput, OutputSpec

__all__ = ["DynamicBoxKD", "group_std_temperatures", "weighted_median"]

_KINDS = ("residual", "group_std", "learned", "fixed")


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


@torch.no_grad()
def group_std_temperatures(
    boxes: Sequence[Tensor],
    anchors: Sequence[Tensor],
    matched_boxes: Sequence[Tensor],
    positives: Sequence[Tensor],
    *,
    t_min: float = 0.01,
    t_max: float = 1.0,
) -> list[Tensor]:
    """
    How far the teacher contradicts itself: for each location the population's standard deviation, edge by edge, of the
    boxes that it decodes at all locations of the same object (of all levels), in units of the location's own anchor.

    Units: edges are pixels. Those to the left and right are divided by the width of the anchor that codes the
    location's box, those above and below by its height. FCOS's anchors are as wide as the stride, so there it is the
    unit of the four distances. RetinaNet codes dx, dy, dw, dh, in anchor sides (dw and dh: their logarithm), and has
    for them, in this order, the left, top, right and bottom edge's deviation, which lies along the same axis; weights
    of its box transform are left out.

    Args:
        boxes: per level, the teacher's (N, A, H, W, 4), absolute xyxy.
        anchors: per level, (A, H, W, 4), absolute xyxy.
        matched_boxes: per level, (N, A, H, W, 4), the object's box, by which objects of an image are told apart.
        positives: per level, (N, A, H, W) booleans.
        t_min, t_max: bounds, 0 < t_min <= t_max. Locations without an object, and of one that has no other location,
            from which nothing can be told, take t_max.

    Returns:
        per level, T of shape (N, A, 4, H, W), fp32.
    """
    index = [level.nonzero(as_tuple=True) for level in positives]
    edges = torch.cat([level[i] for level, i in zip(boxes, index)]).float()  # (P, 4)
    objects = torch.cat([torch.cat([i[0][:, None], level[i]], dim=1) for level, i in zip(matched_boxes, index)])
    _, group, count = objects.unique(dim=0, return_inverse=True, return_counts=True)
    sums = edges.new_zeros(len(count), 4)
    deviations = edges - (sums.index_add(0, group, edges) / count[:, None])[group]
    std = (sums.index_add(0, group, deviations.square()) / count[:, None]).sqrt()
    std = std.masked_fill(count[:, None] < 2, float("inf"))[group]

    temperatures = []
    for level, sides, i, spread in zip(boxes, anchors, index, std.split([len(i[0]) for i in index])):
        sides = (sides[..., 2:] - sides[..., :2]).repeat(1, 1, 1, 2)  # width, height, width, height
        temperature = torch.full_like(level, t_max, dtype=torch.float32)
        temperature[i] = (spread / sides[i[1:]]).clamp_(t_min, t_max)
        temperatures.append(temperature.movedim(-1, 2))
    return temperatures


@LOSS_REGISTRY.register()
class DynamicBoxKD(DistillationLoss):
    """
    :func:`laplace_kl` over the box parameters of plain heads, averaged over a location's four coordinates: FTPD's
    localisation term without distributions, with this library's choice of region and normaliser (after Song et al.,
    reconstructed from the abstract and related work). With distributions: :class:`DynamicLocalizationDistillation`.

    Parameters are compared as the head codes them, so both detectors are of one family; distances that are decoded
    through a ReLU (FCOS's) are compared behind it.

    Temperatures other than "learned" are constants of a step, made of this rank's batch. The mean one of each
    coordinate in the last step is :attr:`temperature_in_use`, of "residual" saved with the model.

    Args:
        kind: where T comes from: "residual" (for each coordinate the :func:`weighted_median` of D over all locations,
            weighted by the region: the knee follows the gap between student and teacher), "group_std"
            (:func:`group_std_temperatures`), "learned" (:class:`LearnedTemperature` from t_min to t_max: a parameter
            of this loss) or "fixed" (``temperature``).
        t_min, t_max: bounds of T, in the unit of the parameters.
        momentum: of the running mean of the median in "residual", in [0, 1); the first step takes its median, an empty
            region changes nothing.
        temperature: T of "fixed"; 0.1 is the knee of the smooth L1 of Detectron2's RetinaNet.
        per, num_levels, learn_iters: of "learned", see :class:`LearnedTemperature`; an "edge" is a coordinate here.
        region, normalizer, kwargs: see :class:`DistillationLoss`.

    Raises:
        ValueError: as :class:`DistillationLoss`, and for an unknown choice or a number out of its range.
    """

    task = "box"

    #: (4,): the mean temperature of each coordinate in the last step; 0: none yet.
    temperature_in_use: Tensor

    def __init__(
        self,
        *,
        kind: str = "residual",
        t_min: float = 0.01,
        t_max: float = 1.0,
        momentum: float = 0.9,
        temperature: float = 0.1,
        per: str = "scalar",
        num_levels: int | None = None,
        learn_iters: int = 4500,
        region: str | Mapping[str, Any] = QUALITY,
        normalizer: str = "locations",
        **kwargs: Any,
    ) -> None:
        super().__init__(region=region, normalizer=normalizer, **kwargs)
        name = type(self).__name__
        if kind not in _KINDS:
            raise ValueError(f"{name}.kind is {kind!r}, expected one of {', '.join(_KINDS)}.")
        for field, value in (("t_min", t_min), ("temperature", temperature)):
            check_number(name, field, value)
        check_number(name, "t_max", t_max, above=t_min, meaning="t_min")
        if isinstance(momentum, bool) or not isinstance(momentum, Real) or not 0 <= momentum < 1:
            raise ValueError(f"{name}.momentum is {momentum!r}, expected a number in [0, 1).")
        self.kind = kind
        self.t_min = t_min
        self.t_max = t_max
        self.momentum = momentum
        self.temperature = temperature
        self.per = per
        self.num_levels = num_levels
        self.learn_iters = learn_iters
        learned = LearnedTemperature(
            owner=name, per=per, num_levels=num_levels, learn_iters=learn_iters, t_start=t_min, t_span=t_max - t_min
        )
        self.learned_temperature = learned if kind == "learned" else None
        self.register_buffer("temperature_in_use", torch.zeros(4), persistent=kind == "residual")

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

    def forward(
        self,
        source: DenseOutput,
        teacher: DenseOutput,
        region: Sequence[Tensor],
        assignment: Assignment | None = None,
    ) -> Tensor:
        """
        See :class:`DistillationLoss`; the median of "residual" is over all levels.

        Raises:
            ValueError: "group_std" without an assignment that knows each location's object.
        """
        temperatures = self._temperatures(source, teacher, region, assignment)
        return torch.stack(
            [
                self.level_loss(source, teacher, level, weight, temperature)
                for level, (weight, temperature) in enumerate(zip(region, temperatures))
            ]
        )

    def level_loss(
        self,
        source: DenseOutput,
        teacher: DenseOutput,
        level: int,
        region: Tensor,
        temperature: Tensor,
    ) -> Tensor:
        """``temperature``: T that broadcasts to (N, A, 4, H, W)."""
        maps = [self._params(output, level) for output in (source, teacher)]
        if temperature.dim() == 5:  # one a location
            region, *maps, temperature = drop_unweighted(region, *maps, temperature)
        else:
            region, *maps = drop_unweighted(region, *maps)
        return weigh_and_reduce(laplace_kl(*maps, temperature=temperature).mean(dim=2), region, "sum")

    def _params(self, output: DenseOutput, level: int) -> Tensor:
        params = output.box_params[level]
        return params.relu() if output.rectified else params

    def _temperatures(
        self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor], assignment: Assignment | None
    ) -> list[Tensor]:
        """Per level, T that broadcasts to (N, A, 4, H, W); keeps their mean for :attr:`temperature_in_use`."""
        if self.kind == "residual":
            return [self._residual(source, teacher, region).view(4, 1, 1)] * len(region)
        if self.kind == "group_std":
            if assignment is None or assignment.matched_boxes is None:
                raise ValueError(
                    "DynamicBoxKD.kind is 'group_std', which needs an assignment with the object of each location "
                    "(matched_boxes), found none: take kind 'residual'."
                )
            temperatures = group_std_temperatures(
                teacher.boxes,
                teacher.anchors,
                assignment.matched_boxes,
                assignment.positives,
                t_min=self.t_min,
                t_max=self.t_max,
            )
            weight = sum(x.sum() for x in region)
            total = sum((x.unsqueeze(2) * t).sum(dim=(0, 1, 3, 4)) for x, t in zip(region, temperatures))
            mean = torch.where(weight > 0, total / weight, self.temperature_in_use)
        elif self.kind == "learned":
            learned = [self.learned_temperature(level=level, iteration=self.iteration) for level in range(len(region))]
            temperatures = [t.view(-1, 1, 1) for t in learned]
            mean = torch.stack(learned).detach().mean(dim=0)
        else:
            fixed = self.temperature_in_use.new_full((1, 1, 1), self.temperature, dtype=torch.float64)
            temperatures = [fixed] * len(region)
            mean = fixed.view(1)
        self.temperature_in_use.copy_(mean)
        return temperatures

    @torch.no_grad()
    def _residual(self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor]) -> Tensor:
        """(4,): the running mean of the median distance, brought up to date."""
        distances, weights = [], []
        for level, weight in enumerate(region):
            maps = [self._params(output, level) for output in (source, teacher)]
            weight, ours, theirs = drop_unweighted(weight, *maps)
            dtype = compute_dtype(ours, theirs)
            distances.append((ours.to(dtype) - theirs.to(dtype)).abs_().movedim(2, 0).flatten(1))
            weights.append(weight.flatten())
        median = weighted_median(torch.cat(distances, dim=1), torch.cat(weights)).clamp_(self.t_min, self.t_max)
        old = self.temperature_in_use
        new = torch.where(old > 0, self.momentum * old + (1 - self.momentum) * median, median)
        old.copy_(torch.where(median.isnan(), old, new))  # NaN: an empty region
        return old.clone()  # the next step writes on it, maybe before this one's backward pass

    def extra_repr(self) -> str:
        fields = ["kind", "t_min", "t_max", "momentum", "temperature", "per", "num_levels", "learn_iters"]
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])
