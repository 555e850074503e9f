"""LD's presets."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from d2kd.losses import LocalizationDistillation, SoftmaxClassificationKD
from d2kd.methods.base import SAME_LOCATIONS, Method


def _losses(
    *, main: float = 0.25, vlr: float, vlr_region: dict[str, Any], kd_temperature: float = 2.0
) -> dict[str, DictConfig]:
    """
    LD's four weights, {main, vlr} x {ld, kd}. Those of ld are of the mean over a box's four sides, those of kd of a
    mean over COCO's 80 classes.
    """
    ld = dict(temperature=10.0, bin_reduction="mean", normalizer="images")
    kd = dict(temperature=kd_temperature, tuned_for_classes=80, normalizer="level_locations")
    return dict(
        ld_main=L(LocalizationDistillation)(weight=main, region="main", **ld),
        ld_vlr=L(LocalizationDistillation)(weight=vlr, region=vlr_region, **ld),
        ld_main_kd=L(SoftmaxClassificationKD)(weight=10.0, region="positives", **kd),
        ld_vlr_kd=L(SoftmaxClassificationKD)(weight=0.0, region={**vlr_region, "weighting": "mask"}, **kd),
    )


_VLR = dict(
    name="valuable_localization", gamma=0.25, metric="anchor_iof", weighting="iou", exclude_positives=False, topk=9
)

LD = Method(
    paper="Localization Distillation for Dense Object Detection, CVPR 2022",
    needs=(SAME_LOCATIONS, "distribution heads with the same number of bins"),
    presets={
        "GFL": _losses(vlr=0.25 / 4, vlr_region=_VLR),
        "ATSS": _losses(vlr=0.25 * 0.15, vlr_region=_VLR),
        "FCOS": _losses(
            vlr=0.25 * 0.25,
            vlr_region=dict(name="inside_box", weighting="student_score", exclude_positives=True),
        ),
        "RetinaNet": _losses(
            main=5.0, vlr=5.0 * 0.03, vlr_region={**_VLR, "exclude_positives": True}, kd_temperature=8.0
        ),
    },
)
