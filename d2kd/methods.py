"""
The presets: method x detector family -> losses node, with the papers' hyper-parameters.

``methods.md`` in the docs says where each figure comes from and which of them are carried over from another detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from d2kd.losses import (
    BinaryClassificationKD,
    CenternessKD,
    IoULocalizationKD,
    LocalizationDistillation,
    SoftmaxClassificationKD,
)

__all__ = ["METHODS", "get_losses"]

# BCKD: alpha1 = 1, alpha2 = 4, beta = 1, GIoU from the GFL config; carried over to the other detectors, for which no
# configuration was published.
_BCKD = dict(
    bckd_cls=L(BinaryClassificationKD)(weight=1.0, beta=1.0, source="student", region="all_locations"),
    bckd_loc=L(IoULocalizationKD)(weight=4.0, iou_type="giou", source="student", region="gap"),
)


def _crosskd(*, tail: int, cls_weight: float, iou_type: str, loc_weight: float) -> dict[str, DictConfig]:
    crossed = dict(source="crossed", tail=tail)
    return dict(
        crosskd_cls=L(BinaryClassificationKD)(weight=cls_weight, beta=1.0, region="all_locations", **crossed),
        crosskd_loc=L(IoULocalizationKD)(weight=loc_weight, iou_type=iou_type, region="teacher_quality", **crossed),
    )


# On a distribution head the box term is a KL at temperature 1, averaged with the teacher's quality as weight.
_CROSSKD_GFL = dict(
    crosskd_cls=_crosskd(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0)["crosskd_cls"],
    crosskd_loc=L(LocalizationDistillation)(
        weight=4.0,
        temperature=1.0,
        bin_reduction="sum",
        source="crossed",
        tail=1,
        region="teacher_quality",
        normalizer="locations",
    ),
)

_CROSSKD_ATSS = dict(
    **_crosskd(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0),
    crosskd_centerness=L(CenternessKD)(weight=1.0, source="crossed", tail=1, region="positives"),
)


def _ld(
    *, main: float = 0.25, vlr: float, vlr_region: dict[str, Any], kd_temperature: float = 2.0
) -> dict[str, DictConfig]:
    """LD's four weights, {main, vlr} x {ld, kd}. Weights are of the mean over a box's four sides."""
    ld = dict(temperature=10.0, bin_reduction="mean", normalizer="images")
    kd = dict(temperature=kd_temperature, normalizer="level_locations")
    return dict(
        ld_main=L(LocalizationDistillation)(weight=main, region="main", **ld),
        ld_vlr=L(LocalizationDistillation)(weight=vlr, region=vlr_region, **ld),
        ld_main_kd=L(SoftmaxClassificationKD)(weight=10.0, region="positives", **kd),
        ld_vlr_kd=L(SoftmaxClassificationKD)(weight=0.0, region={**vlr_region, "weighting": "mask"}, **kd),
    )


_VLR = dict(
    name="valuable_localization", gamma=0.25, metric="anchor_iof", weighting="iou", exclude_positives=False, topk=9
)

#: method -> detector family -> losses node.
METHODS: Mapping[str, Mapping[str, Mapping[str, DictConfig]]] = {
    "bckd": {"RetinaNet": _BCKD, "FCOS": _BCKD, "GFL": _BCKD, "ATSS": _BCKD},
    "crosskd": {
        "RetinaNet": _crosskd(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0),
        "FCOS": _crosskd(tail=2, cls_weight=0.4, iou_type="neg_log_iou", loc_weight=0.75),
        "GFL": _CROSSKD_GFL,
        "ATSS": _CROSSKD_ATSS,
    },
    "ld": {
        "GFL": _ld(vlr=0.25 / 4, vlr_region=_VLR),
        "ATSS": _ld(vlr=0.25 * 0.15, vlr_region=_VLR),
        "FCOS": _ld(
            vlr=0.25 * 0.25,
            vlr_region=dict(name="inside_box", weighting="student_score", exclude_positives=True),
        ),
        "RetinaNet": _ld(main=5.0, vlr=5.0 * 0.03, vlr_region={**_VLR, "exclude_positives": True}, kd_temperature=8.0),
    },
}


def get_losses(method: str, family: str) -> dict[str, DictConfig]:
    """
    The losses node of a method for a detector family, a copy that may be changed.

    Raises:
        ValueError: an unknown method (the nearest names are suggested), or one without a preset for that family.
    """
    if method not in METHODS:
        near = get_close_matches(method, METHODS)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"Unknown method {method!r}, expected one of {', '.join(METHODS)}{hint}")
    presets = METHODS[method]
    if family not in presets:
        raise ValueError(
            f"Method {method!r} has no preset for {family}, only for {', '.join(presets)}; give losses={{...}} instead."
        )
    return deepcopy(dict(presets[family]))
