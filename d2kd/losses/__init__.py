"""Distillation losses: pure functions, and the thin modules that hold their hyper-parameters. Torch and fvcore only."""

from d2kd.losses.align import align_statistics
from d2kd.losses.base import LOSS_REGISTRY, NORMALIZERS, SOURCES, DistillationLoss
from d2kd.losses.binary_classification import BinaryClassificationKD, binary_classification_kd
from d2kd.losses.iou_localization import IoULocalizationKD, iou_localization_kd

__all__ = [
    "LOSS_REGISTRY",
    "NORMALIZERS",
    "SOURCES",
    "BinaryClassificationKD",
    "DistillationLoss",
    "IoULocalizationKD",
    "align_statistics",
    "binary_classification_kd",
    "iou_localization_kd",
]
