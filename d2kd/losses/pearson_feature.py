"""PKD: feature maps compared by their Pearson correlation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.standardize import standardized_difference
from d2kd.structures import DenseOutput

__all__ = ["PearsonFeatureKD"]


@LOSS_REGISTRY.register()
class PearsonFeatureKD(FeatureLoss):
    """
    :func:`standardized_difference` of the pyramid's features: "PKD: General Distillation Framework for Object
    Detectors via Pearson Correlation Coefficient" (NeurIPS 2022).

    With the defaults it is the authors' code: on each level the mean over all cells, padding included, summed over the
    levels; the unbiased standard deviation; no mask and no projector. Since each channel is standardised, the maps'
    scales do not matter, which is the paper's reason for it where teacher and student are of different kinds. Another
    region weighs cells after the statistics were taken, which are those of a rank's whole batch (not reduced over
    ranks).

    Args:
        region: see :class:`DistillationLoss`.
        kwargs: see :class:`FeatureLoss`.

    Example:
        >>> PearsonFeatureKD(weight=6.0)  # doctest: +ELLIPSIS
        PearsonFeatureKD(weight=6.0, source=student, region=everywhere, normalizer=level_locations, ...)
    """

    def __init__(self, *, region: str | Mapping[str, Any] = "everywhere", **kwargs: Any) -> None:
        super().__init__(region=region, **kwargs)

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region`, (N, 1, H, W)."""
        student, teacher_map = self.feature_maps(source, teacher, level)
        weight = self.cell_weights(region)
        return standardized_difference(student, teacher_map, weight=weight, reduction="sum")
