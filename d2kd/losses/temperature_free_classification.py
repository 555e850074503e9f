"""Classification distillation without a temperature: FTPD's classification term, reconstructed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.binary_classification import BinaryClassificationKD
from d2kd.losses.class_relations import pearson_kd
from d2kd.losses.kernel import check_choice, check_number, drop_unweighted
from d2kd.losses.region_spec import RegionSpec
from d2kd.regions.quality import QUALITY
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["TemperatureFreeClassificationKD"]

logger = logging.getLogger(__name__)

_KINDS = ("sigmoid", "sigmoid+pearson")


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
    * "sigmoid+pearson": the same, plus ``eta`` times :func:`d2kd.losses.pearson_kd`, which does not depend on the
      scale of the logits. This part is weighted by ``quality_region`` and divided by its total weight, a weighted mean
      over locations. Our choice for teachers of another family.

    Args:
        kind: "sigmoid" or "sigmoid+pearson".
        eta: factor of the Pearson part, > 0.
        quality_region: the weights of the Pearson part, given as ``region`` is. Background must weigh little, see
            :func:`d2kd.losses.pearson_kd`.
        kwargs: ``beta`` (1.0), see :class:`d2kd.losses.BinaryClassificationKD`, with ``region`` and ``normalizer``
            those of the sigmoid part; the rest of :class:`DistillationLoss`.

    Example:
        >>> TemperatureFreeClassificationKD(kind="sigmoid+pearson", eta=0.5)  # doctest: +ELLIPSIS
        TemperatureFreeClassificationKD(weight=1.0, ..., beta=1.0, kind=sigmoid+pearson, eta=0.5, ...)
    """

    def __init__(
        self,
        *,
        kind: str = "sigmoid",
        eta: float = 1.0,
        quality_region: str | Mapping[str, Any] = QUALITY,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        check_choice(name, "kind", kind, _KINDS)
        check_number(name, "eta", eta)
        quality = RegionSpec.of(name, field="quality_region", region=quality_region, normalizer="locations")
        self.kind = kind
        self.eta = eta
        self.quality_region = dict(quality_region) if isinstance(quality_region, Mapping) else quality_region
        if kind == "sigmoid+pearson":
            self.regions = (replace(self.regions[0], label="sigmoid"), replace(quality, label="pearson"))

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        # Standardised, two classes are +1 and -1 whatever their logits.
        if self.kind == "sigmoid+pearson" and source.num_classes <= 2:
            logger.warning(
                f"TemperatureFreeClassificationKD of kind={self.kind!r} compares the classes of a location with one "
                "another, and that part of it has next to no gradient with "
                f"num_classes={source.num_classes}: take kind='sigmoid'."
            )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        if self.kind == "sigmoid":
            return super().level_loss(source, teacher, level, region)
        sigmoid = super().level_loss(source, teacher, level, region[0])
        quality, *logits = drop_unweighted(region[1], source.logits[level], teacher.logits[level])
        pearson = pearson_kd(*logits, weight=quality, dim=source.class_dim, reduction="sum")
        return torch.stack([sigmoid, self.eta * pearson])

    def extra_repr(self) -> str:
        names = ("kind", "eta", "quality_region")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in names)])
