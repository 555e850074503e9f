"""TID: feature imitation in three regions, by what both tasks of student and teacher make of the objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.region_spec import RegionSpec
from d2kd.losses.standardize import standardized_difference
from d2kd.regions.base import is_number
from d2kd.structures import DenseOutput

__all__ = ["TaskIntegrationKD"]

#: What TID distinguishes, with the weights of its presets.
_REGION_WEIGHTS = {"weak": 4.0, "key": 2.0, "rest": 1.0}


@LOSS_REGISTRY.register()
class TaskIntegrationKD(FeatureLoss):
    """
    Feature imitation, apart for the cells on which the student is behind the teacher (weak), for those on which the
    teacher is good and the student no worse than it (key), and for the rest:

        L = sum over regions of region_weight * mean over levels of (sum_i w_i D_i / sum_i w_i)

    with regions and w of :func:`d2kd.regions.task_integration.task_integration`, and D_i the
    :func:`standardized_difference` of the features of cell i, with the population's deviation. TID, "Classification and
    regression Task Integration in distillation for object detectors" (Su et al., Neurocomputing 624, 2025; preprint
    arXiv:2404.01699), reconstructed: the abstracts have key and weak areas from both tasks' outputs and say that
    features are decoupled by them; that it is a three-way decoupling is from a summary that is not its authors'. D, the
    weights of regions and cells and the means are this project's choice.

    D is PKD's, so that the weights do not depend on the scale of a detector's features. Their sum is about PKD's 6, and
    their order is the summary's.

        >>> TaskIntegrationKD(region_weights={"weak": 4, "key": 2, "rest": 0}).regions[0].name
        'task_integration.weak'

    Args:
        region_weights: a weight >= 0 for each of "weak", "key" and "rest"; None: 4, 2 and 1.
        combine: how both tasks' scores are made into one, "product" or "sum"; "cls" and "reg" are one task alone.
        min_teacher_score: weak cells are those alone where the teacher has this score, from 0 to the highest there is
            (of a product or a sum 4, of one task 2).
        normalizer: see :class:`DistillationLoss`, of each region. "level_mean": as above, over the levels on which the
            region is not empty; "locations": one mean over all levels' cells.
        kwargs: see :class:`FeatureLoss`; no ``region``.

    Raises:
        ValueError: as :class:`FeatureLoss`, and for an option out of its range.
    """

    def __init__(
        self,
        *,
        region_weights: Mapping[str, float] | None = None,
        combine: str = "product",
        min_teacher_score: float = 0.0,
        normalizer: str = "level_mean",
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if "region" in kwargs:
            raise ValueError(f"{name}.region is {kwargs['region']!r}, expected none: the loss has its own regions.")
        super().__init__(region="everywhere", normalizer=normalizer, **kwargs)
        weights = _REGION_WEIGHTS if region_weights is None else region_weights
        _check_weights(name, weights)
        self.region_weights = {label: weights[label] for label in _REGION_WEIGHTS}
        self.combine = combine
        self.min_teacher_score = min_teacher_score
        options = {"combine": combine, "min_teacher_score": min_teacher_score}
        self.regions = tuple(
            RegionSpec.of(
                name, region={"name": f"task_integration.{label}", **options}, normalizer=normalizer, label=label
            )
            for label in self.region_weights
        )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region` of the three regions, (3, N, 1, H, W)."""
        weights = self.cell_weights(region)
        differences = standardized_difference(*self.feature_maps(source, teacher, level), correction=0)
        sums = (weights.to(differences.dtype) * differences).sum(dim=(-3, -2, -1))
        return torch.stack([weight * total for weight, total in zip(self.region_weights.values(), sums)])

    def extra_repr(self) -> str:
        fields = ("region_weights", "combine", "min_teacher_score")
        return ", ".join([super().extra_repr(), *(f"{field}={getattr(self, field)}" for field in fields)])


def _check_weights(loss: str, weights: Mapping[str, float]) -> None:
    is_complete = isinstance(weights, Mapping) and set(weights) == set(_REGION_WEIGHTS)
    if not is_complete or not all(is_number(x) and x >= 0 for x in weights.values()):
        raise ValueError(
            f"{loss}.region_weights is {weights!r}, expected a mapping of a number >= 0 for each of "
            f"{', '.join(_REGION_WEIGHTS)}."
        )
