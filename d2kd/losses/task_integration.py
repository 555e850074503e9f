"""TID: feature imitation in three areas, by what both tasks of student and teacher make of the objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.feature_imitation import feature_imitation
from d2kd.losses.kernel import compute_dtype
from d2kd.losses.parts import Part
from d2kd.losses.standardize import standardized_difference
from d2kd.structures import DenseOutput

__all__ = ["TaskIntegrationKD", "teacher_attention"]

#: What TID distinguishes, in the order of how much it weighs.
AREAS = ("weak", "key", "rest")
FEATURE_NORMS = ("pearson", "none")
_REGION = "task_integration"


@torch.no_grad()
def teacher_attention(features: Tensor, *, temperature: float = 0.5) -> tuple[Tensor, Tensor]:
    """
    Where, and in which channels, a map is large; of mean 1 each. With f = |features|:

        spatial = H W softmax over cells (mean over channels of f / temperature)
        channel =   C softmax over channels (mean over cells of f / temperature)

    The attention masks of "Focal and Global Knowledge Distillation for Detectors" (FGD, CVPR 2022).

    Args:
        features: (N, C, H, W).
        temperature: in the unit of the features, > 0.

    Returns:
        spatial (N, H, W) and channel (N, C), detached fp32 (float64 stays float64).
    """
    size = features.to(compute_dtype(features)).abs()
    spatial = (size.mean(1) / temperature).flatten(1).softmax(1).mul_(size[0, 0].numel())
    channel = (size.mean((2, 3)) / temperature).softmax(1).mul_(size.shape[1])
    return spatial.view(len(size), *size.shape[2:]), channel


@LOSS_REGISTRY.register()
class TaskIntegrationKD(FeatureLoss):
    """
    Feature imitation, apart for the cells on which the student is behind the teacher (weak), for those on which the
    teacher is good and the student no worse than it (key), and for the rest:

        L = sum over areas of area_weight * mean over levels of (sum_i w_i D_i / sum_i w_i)

    with areas and w of the region :func:`d2kd.regions.task_integration.task_integration`, and D_i the difference of
    the features of cell i. TID, "Classification and regression Task Integration in distillation for object detectors"
    (Su et al., Neurocomputing 624, 2025; preprint arXiv:2404.01699), reconstructed: the abstracts have key and weak
    areas from both tasks' outputs and say that features are decoupled by them; that it is a three-way decoupling is
    from a summary that is not its authors'. D, the weights of areas and cells and the means are this project's choice.

    D follows PKD by default: then the weights 4, 2, 1 do not depend on the scale of a detector's features. Their sum
    is about PKD's 6, and their order is the summary's.

    Args:
        areas: some of "weak", "key" and "rest", each once; or "all" alone, every cell alike: the control that tells
            what the areas are good for.
        area_weights: each area's weight, >= 0.
        scores: options of the region but "area"; None: its defaults.
        feature_norm: D. "pearson": :func:`standardized_difference` with the population's deviation. "none": the
            squared difference summed over channels, in the squared unit of the features; then weights are of another
            order (FRS weighs such a term 0.1 for GFL, 0.005 for RetinaNet, 0.01 for FCOS).
        attention: multiply D by :func:`teacher_attention`, by channel inside the mean or sum, and by cell.
        normalizer: see :class:`DistillationLoss`, of each area. "level_mean": as above, over the levels on which the
            area is not empty; "locations": one mean over all levels' cells.
        kwargs: see :class:`FeatureLoss`; no ``region``, which is the areas'.

    Raises:
        ValueError: as :class:`FeatureLoss`, and for an option out of its range.
    """

    def __init__(
        self,
        *,
        areas: Sequence[str] = AREAS,
        area_weights: Sequence[float] = (4.0, 2.0, 1.0),
        scores: Mapping[str, Any] | None = None,
        feature_norm: str = "pearson",
        attention: bool = False,
        normalizer: str = "level_mean",
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if "region" in kwargs:
            raise ValueError(f"{name}.region is {kwargs['region']!r}, expected none: set areas and scores instead.")
        _check_areas(name, areas, area_weights, scores)
        super().__init__(region="everywhere", normalizer=normalizer, **kwargs)
        if feature_norm not in FEATURE_NORMS:
            raise ValueError(f"{name}.feature_norm is {feature_norm!r}, expected one of {', '.join(FEATURE_NORMS)}.")
        if not isinstance(attention, bool):
            raise ValueError(f"{name}.attention is {attention!r}, expected true or false.")
        self.areas = tuple(areas)
        self.area_weights = tuple(area_weights)
        self.scores = None if scores is None else dict(scores)
        self.feature_norm = feature_norm
        self.attention = attention
        if self.areas != ("all",):
            self.parts = tuple(self._term(area, normalizer) for area in self.areas)

    def _term(self, area: str, normalizer: str) -> Part:
        region = {"name": _REGION, "area": area, **(self.scores or {})}
        return Part.of(type(self).__name__, region=region, normalizer=normalizer, name=area, field="scores")

    def cell_differences(self, student: Tensor, teacher: Tensor) -> Tensor:
        """
        D of one level.

        Args:
            student: (N, C, H, W).
            teacher: same shape; detached.

        Returns:
            (N, H, W) fp32 (float64 if an input is).
        """
        spatial = channel = None
        if self.attention:
            spatial, channel = teacher_attention(teacher.detach())
        if self.feature_norm == "pearson":
            return standardized_difference(student, teacher, weight=spatial, correction=0)
        if channel is not None:
            dtype = compute_dtype(student, teacher)
            root = channel.to(dtype).sqrt()[:, :, None, None]
            student, teacher = student.to(dtype) * root, teacher.detach().to(dtype) * root
        return feature_imitation(student, teacher, weight=spatial) * student.shape[1]

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region`, of several areas (T, N, 1, H, W), of one (N, 1, H, W)."""
        weights = self.cell_weights(region)
        differences = self.cell_differences(*self.feature_maps(source, teacher, level))
        sums = (weights.to(differences.dtype) * differences).sum(dim=(-3, -2, -1))
        if sums.dim() == 0:
            return sums * self.area_weights[0]
        return torch.stack([weight * total for weight, total in zip(self.area_weights, sums)])

    def extra_repr(self) -> str:
        fields = ("areas", "area_weights", "scores", "feature_norm", "attention")
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])


def _check_areas(loss: str, areas: Any, weights: Any, scores: Any) -> None:
    named = isinstance(areas, Sequence) and not isinstance(areas, str) and len(areas) > 0
    if not named or (tuple(areas) != ("all",) and (not set(areas) <= set(AREAS) or len(set(areas)) < len(areas))):
        raise ValueError(
            f"{loss}.areas is {areas!r}, expected a list of {', '.join(AREAS)}, each at most once, or ['all']."
        )
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str) and len(weights) == len(areas)
    if not is_list or not all(
        isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) and x >= 0 for x in weights
    ):
        raise ValueError(
            f"{loss}.area_weights is {weights!r}, expected a list of a number >= 0 for each of {loss}.areas "
            f"({', '.join(areas)})."
        )
    if scores is None:
        return
    if not isinstance(scores, Mapping) or {"name", "area"} & set(scores):
        raise ValueError(
            f"{loss}.scores is {scores!r}, expected a mapping of options of the region {_REGION!r}, without 'name' and "
            "'area', or null."
        )
    if scores and tuple(areas) == ("all",):
        raise ValueError(f"{loss}.scores is {scores!r}, but {loss}.areas is ['all'], which reads none: set it to null.")
