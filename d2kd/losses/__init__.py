"""Distillation losses: pure functions, and the thin modules that hold their hyper-parameters. Torch and fvcore only."""

from d2kd.losses.align import align_statistics
from d2kd.losses.base import LOSS_REGISTRY, SOURCES, DistillationLoss
from d2kd.losses.binary_classification import BinaryClassificationKD, binary_classification_kd, gap_weighted_bce
from d2kd.losses.centerness import CenternessKD, centerness_kd
from d2kd.losses.channel_wise import ChannelWiseKD, channel_wise_kd
from d2kd.losses.class_relations import pearson_kd, zscore_kd
from d2kd.losses.dynamic_box import DynamicBoxKD
from d2kd.losses.dynamic_localization import DynamicLocalizationDistillation, dynamic_localization_kd
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.feature_imitation import FeatureImitation, feature_imitation
from d2kd.losses.iou_localization import IoULocalizationKD, iou_localization_kd, iou_loss
from d2kd.losses.laplace_kl import laplace_kl
from d2kd.losses.localization_distillation import LocalizationDistillation, localization_distillation
from d2kd.losses.pearson_feature import PearsonFeatureKD
from d2kd.losses.region_spec import NORMALIZERS, RegionSpec
from d2kd.losses.softmax_classification import SoftmaxClassificationKD, softmax_classification_kd
from d2kd.losses.standardize import standardize, standardized_difference
from d2kd.losses.task_integration import TaskIntegrationKD
from d2kd.losses.temperature_free_classification import TemperatureFreeClassificationKD
from d2kd.losses.temperature_kl import temperature_kl

__all__ = [
    "LOSS_REGISTRY",
    "NORMALIZERS",
    "SOURCES",
    "BinaryClassificationKD",
    "CenternessKD",
    "ChannelWiseKD",
    "DistillationLoss",
    "DynamicBoxKD",
    "DynamicLocalizationDistillation",
    "FeatureImitation",
    "FeatureLoss",
    "IoULocalizationKD",
    "LocalizationDistillation",
    "PearsonFeatureKD",
    "RegionSpec",
    "SoftmaxClassificationKD",
    "TaskIntegrationKD",
    "TemperatureFreeClassificationKD",
    "align_statistics",
    "binary_classification_kd",
    "centerness_kd",
    "channel_wise_kd",
    "dynamic_localization_kd",
    "feature_imitation",
    "gap_weighted_bce",
    "iou_localization_kd",
    "iou_loss",
    "laplace_kl",
    "localization_distillation",
    "pearson_kd",
    "softmax_classification_kd",
    "standardize",
    "standardized_difference",
    "temperature_kl",
    "zscore_kd",
]
