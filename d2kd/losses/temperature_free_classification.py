"""Classification distillation without a temperature: FTPD's classification term, reconstructed, and alternatives."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.binary_classification import BinaryClassificationKD
from d2kd.losses.class_relations import PEARSON_AXES, pearson_kd, zscore_kd
from d2kd.losses.kernel import check_number, drop_unweighted, weigh_and_reduce
from d2kd.losses.region_spec import RegionSpec
from d2kd.losses.temperature_kl import temperature_kl
from d2kd.regions.quality import QUALITY
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["KINDS", "TemperatureFreeClassificationKD"]

logger = logging.getLogger(__name__)

#: What :class:`TemperatureFreeClassificationKD` compares.
KINDS = ("sigmoid", "zscore", "pearson", "sigmoid+pearson", "softmax")


@LOSS_REGISTRY.register()
class TemperatureFreeClassificationKD(BinaryClassificationKD):
    """
    FTPD's classification term over dense outputs, after Song et al. (IEEE TCSVT 35(5):4963-4975, 2025,
    doi 10.1109/TCSVT.2024.3525051). **Reconstructed**: there is no public code, and of the text the abstract alone is
    public. It says that classification is distilled without a temperature, for robustness between heterogeneous
    networks; formula, regions and numbers are choices of this library.

    ``kind`` is what is compared:

    * "sigmoid": :func:`d2kd.losses.binary_classification_kd`, weighted by ``region`` and divided by ``normalizer``.
      Scores are compared as they are, so no temperature appears. With the defaults it is BCKD's classification term,
      whose formula is that of BCKD's and CrossKD's released code; that FTPD uses it is a guess.
    * "zscore": :func:`zscore_kd`, a reading of "heterogeneous" in which logits of another scale are none the worse.
    * "pearson": :func:`pearson_kd` over ``axis``, another.
    * "sigmoid+pearson": the first, plus ``eta`` times the third, each in its own region and over its own normaliser:
      our choice for teachers of another family.
    * "softmax": T^2 * KL(softmax(teacher / T) || softmax(student / T)), summed over classes: the fixed temperature that
      the abstract argues against, for comparison.

    All but "sigmoid" are weighted by ``quality_region`` and divided by its total weight, a weighted mean over
    locations; ``region`` and ``normalizer`` are then for the sigmoid part alone. "pearson" over locations takes its
    statistics level by level over this rank's batch, all anchors of a cell together.

    Args:
        kind: one of :data:`KINDS`.
        eta: factor of the Pearson part of "sigmoid+pearson", > 0.
        axis: of the Pearson part, one of :data:`PEARSON_AXES`.
        temperature: of "softmax", T > 0.
        quality_region: the weights of all parts but the sigmoid one, given as ``region`` is. Background must weigh
            little, see :func:`zscore_kd`.
        kwargs: ``beta`` (1.0) and ``detach_gap`` (false), see :class:`d2kd.losses.BinaryClassificationKD`, with
            ``region`` and ``normalizer`` those of the sigmoid part; the rest of :class:`DistillationLoss`.

    Raises:
        ValueError: as :class:`DistillationLoss`, and for a field out of its range.
    """

    task = "cls"

    def __init__(
        self,
        *,
        kind: str = "sigmoid",
        eta: float = 1.0,
        axis: str = "class",
        temperature: float = 2.0,
        quality_region: str | Mapping[str, Any] = QUALITY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        for field, value, known in (("kind", kind, KINDS), ("axis", axis, PEARSON_AXES)):
            if value not in known:
                raise ValueError(f"{name}.{field} is {value!r}, expected one of {', '.join(known)}.")
        check_number(name, "eta", eta)
        check_number(name, "temperature", temperature)
        quality = RegionSpec.of(name, field="quality_region", region=quality_region, normalizer="locations")
        self.kind = kind
        self.eta = eta
        self.axis = axis
        self.temperature = temperature
        self.quality_region = dict(quality_region) if isinstance(quality_region, Mapping) else quality_region
        if kind == "sigmoid+pearson":
            self.regions = (replace(self.regions[0], label="sigmoid"), replace(quality, label="pearson"))
        elif kind != "sigmoid":
            self.regions = (quality,)

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        # Standardised, two classes are +1 and -1 whatever their logits.
        standardized = self.kind == "zscore" or ("pearson" in self.kind and self.axis != "location")
        if source.num_classes <= (2 if standardized else 1 if self.kind == "softmax" else 0):
            what = f" over axis={self.axis!r}" if "pearson" in self.kind else ""
            logger.warning(
                f"TemperatureFreeClassificationKD of kind={self.kind!r}{what} compares the classes of a location with "
                "one another, and that part of it has next to no gradient with "
                f"num_classes={source.num_classes}: take kind='sigmoid', or axis='location' with "
                "kind='pearson'."
            )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        if self.kind == "sigmoid":
            return super().level_loss(source, teacher, level, region)
        if self.kind == "sigmoid+pearson":
            sigmoid = super().level_loss(source, teacher, level, region[0])
            return torch.stack([sigmoid, self.eta * self._relations(source, teacher, level, region[1])])
        return self._relations(source, teacher, level, region)

    def _relations(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """What compares the logits with one another, not each by itself."""
        region, *logits = drop_unweighted(region, source.logits[level], teacher.logits[level])
        dim = source.class_dim
        if self.kind == "zscore":
            return zscore_kd(*logits, weight=region, reduction="sum", dim=dim)
        if self.kind == "softmax":
            loss = temperature_kl(*logits, temperature=self.temperature, bin_reduction="sum", dim=dim)
            return weigh_and_reduce(loss, region, "sum")
        return pearson_kd(*logits, axis=self.axis, weight=region, reduction="sum", dim=dim)

    def extra_repr(self) -> str:
        names = ("kind", "eta", "axis", "temperature", "quality_region")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in names)])
