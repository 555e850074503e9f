"""
Distillation losses: pure functions, and the thin modules that hold their hyper-parameters. Torch and fvcore only.

What all functions have in common; their own docstrings say what differs:

* They take the student's tensor first and the teacher's second, both of one shape and floating point: raw logits,
  never probabilities. The teacher is detached. Any view of any memory layout is read where it lies.
* They compute in float32 whatever the input dtype or autocast, and in float64 if an input is float64. That is the dtype
  of the result; a gradient has the dtype of its input.
* ``dim``: the axis that is summed over: the classes, or the bins of a box edge; any axis of the inputs with one element
  at least.
* ``weight``: a factor per location, of the shape of the result before reduction: the inputs' without axis ``dim``. It
  must not require grad.
* ``reduction``: "none" returns the loss of each location, "sum" the sum over locations, a scalar. No normaliser is
  applied; a sum over no location is a zero that is connected to the student.
* Non-finite values are not hidden: they make the loss of their location non-finite. Only an infinite logit of a
  teacher's sigmoid is a value, the probability 0 or 1.

They raise ValueError for tensors of different shapes or not floating point, a ``dim`` that is not such an axis, a
``weight`` of another shape or one that requires grad, an unknown ``reduction``, and a temperature that is not above 0.
Other hyper-parameters are checked by the modules' constructors, which raise ValueError and name the config field; not
again by the functions.

The examples in the docstrings run (``pytest --doctest-modules d2kd/losses``).
"""

from d2kd.losses.align import align_statistics
from d2kd.losses.base import LOSS_REGISTRY, SOURCES, DistillationLoss
from d2kd.losses.binary_classification import BinaryClassificationKD, binary_classification_kd, gap_weighted_bce
from d2kd.losses.centerness import CenternessKD, centerness_kd
from d2kd.losses.channel_wise import ChannelWiseKD, channel_wise_kd
from d2kd.losses.class_relations import pearson_kd
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
from d2kd.losses.standardize import standardized_difference
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
    "standardized_difference",
    "temperature_kl",
]
