"""Dense detectors that Detectron2 lacks: GFL, ATSS, and RetinaNet, FCOS and ATSS with distributions for boxes."""

from d2kd.modeling.detectors.assigner import ATSSAssigner
from d2kd.modeling.detectors.atss import ATSS, ATSSHead
from d2kd.modeling.detectors.base import AssignedDetector
from d2kd.modeling.detectors.config import add_atss_config, add_gfl_config
from d2kd.modeling.detectors.distribution import DistributionBoxes, expected_distances
from d2kd.modeling.detectors.distribution_detectors import DistributionATSS, DistributionFCOS, DistributionRetinaNet
from d2kd.modeling.detectors.fcos import add_fcos_config
from d2kd.modeling.detectors.gfl import GFL, GFLHead
from d2kd.modeling.detectors.head import DenseHead

__all__ = [
    "ATSS",
    "GFL",
    "ATSSAssigner",
    "ATSSHead",
    "AssignedDetector",
    "DenseHead",
    "DistributionATSS",
    "DistributionBoxes",
    "DistributionFCOS",
    "DistributionRetinaNet",
    "GFLHead",
    "add_atss_config",
    "add_fcos_config",
    "add_gfl_config",
    "expected_distances",
]
