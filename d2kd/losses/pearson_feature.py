"""PKD: feature maps compared by their Pearson correlation."""

from __future__ import annotations

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
    levels; no mask and no projector. Since each channel is standardised, the maps' scales do not matter, which is the
    paper's reason for it where teacher and student are of different kinds. Another region weighs cells after the
    statistics were taken, which are those of a rank's whole batch (not reduced over ranks).

    Args:
        correction: 1: the unbiased standard deviation; 0: the population's.
        region: see :class:`DistillationLoss`.
        kwargs: see :class:`FeatureLoss`.

    Raises:
        ValueError: as :class:`FeatureLoss`, and for another ``correction``.
    """

    def __init__(self, *, correction: int = 1, region: Any = "everywhere", **kwargs: Any) -> None:
        super().__init__(region=region, **kwargs)
        if isinstance(correction, bool) or correction not in (0, 1):
            raise ValueError(f"PearsonFeatureKD.correction is {correction!r}, expected 0 or 1.")
        self.correction = correction

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region`, (N, 1, H, W)."""
        student, teacher_map = self.feature_maps(source, teacher, level)
        weight = self.cell_weights(region)
        return standardized_difference(student, teacher_map, weight=weight, correction=self.correction, reduction="sum")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, correction={self.correction}"
