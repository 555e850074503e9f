"""CrossKD's presets."""

from __future__ import annotations

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from d2kd.losses import BinaryClassificationKD, CenternessKD, IoULocalizationKD, LocalizationDistillation
from d2kd.methods.base import Method


def _losses(*, tail: int, cls_weight: float, iou_type: str, loc_weight: float) -> dict[str, DictConfig]:
    crossed = dict(source="crossed", tail=tail)
    return dict(
        crosskd_cls=L(BinaryClassificationKD)(weight=cls_weight, beta=1.0, region="all_locations", **crossed),
        crosskd_loc=L(IoULocalizationKD)(weight=loc_weight, iou_type=iou_type, region="teacher_quality", **crossed),
    )


# On a distribution head the box term is a KL at temperature 1, averaged with the teacher's quality as weight.
_GFL = dict(
    crosskd_cls=_losses(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0)["crosskd_cls"],
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

_ATSS = dict(
    **_losses(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0),
    crosskd_centerness=L(CenternessKD)(weight=1.0, source="crossed", tail=1, region="positives"),
)

CROSSKD = Method(
    paper="CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024",
    needs=("the same tower width where the taps are, or model.tap_projector_channels",),
    presets={
        "RetinaNet": _losses(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0),
        "FCOS": _losses(tail=2, cls_weight=0.4, iou_type="neg_log_iou", loc_weight=0.75),
        "GFL": _GFL,
        "ATSS": _ATSS,
    },
)
