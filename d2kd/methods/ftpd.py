"""FTPD's presets: reconstructed, weights included; the figures are not the paper's."""

from __future__ import annotations

from functools import partial

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from d2kd.losses import (
    CenternessKD,
    DynamicBoxKD,
    DynamicLocalizationDistillation,
    IoULocalizationKD,
    TemperatureFreeClassificationKD,
)
from d2kd.methods.base import SAME_LOCATIONS, Method, warm_up
from d2kd.regions.quality import QUALITY

_QUALITY = dict(QUALITY)


def _losses(
    *, kind: str, cls: float, box: float, centerness: float | None = None, distribution: bool = False
) -> dict[str, DictConfig]:
    """Parallel distillation: each response of the head by a loss of its own, all of one source."""
    where = dict(source="student", region=_QUALITY, normalizer="locations", **warm_up())
    losses = dict(
        ftpd_cls=L(TemperatureFreeClassificationKD)(
            weight=cls,
            kind=kind,
            source="student",
            region="all_locations",
            normalizer="positives",
            quality_region=_QUALITY,
            **warm_up(),
        ),
        ftpd_dlt=(
            L(DynamicLocalizationDistillation)(weight=2.0, kind="std", **where)
            if distribution
            else L(DynamicBoxKD)(weight=1.0, kind="residual", **where)
        ),
        ftpd_box=L(IoULocalizationKD)(weight=box, iou_type="giou", **where),
    )
    if centerness is not None:
        losses["ftpd_centerness"] = L(CenternessKD)(weight=centerness, **where)
    return losses


def _ftpd(kind: str) -> Method:
    retinanet = partial(_losses, kind=kind, cls=1.0, box=1.0)
    fcos = partial(_losses, kind=kind, cls=0.4, box=0.75, centerness=1.0)
    atss = partial(_losses, kind=kind, cls=1.0, box=1.0, centerness=1.0)
    return Method(
        paper="FTPD (Song et al., IEEE TCSVT 35(5), 2025, doi 10.1109/TCSVT.2024.3525051)",
        needs=(SAME_LOCATIONS, "distribution heads with the same number of bins, or plain heads of one family"),
        presets={
            "RetinaNet": retinanet(),
            "FCOS": fcos(),
            "GFL": _losses(kind=kind, cls=1.0, box=2.0, distribution=True),
            "ATSS": atss(),
            "DistributionRetinaNet": retinanet(distribution=True),
            "DistributionFCOS": fcos(distribution=True),
            "DistributionATSS": atss(distribution=True),
        },
        reconstructed="FTPD from its abstract and related work: no formula or figure of the paper is public",
    )


FTPD = _ftpd("sigmoid")
#: For teachers of another backbone family: the classes' relations beside their scores. This library's choice.
FTPD_HETERO = _ftpd("sigmoid+pearson")
