"""
Regions: where to distil, as one detached weight a location.

Pure functions on tensors first; the registered ones read them off dense outputs, level by level. Torch and fvcore
only.
"""

from d2kd.regions.base import REGION_REGISTRY, check_options, is_label_free, label_free
from d2kd.regions.boxes import (
    central_overlap,
    fine_grained_region,
    inside_box_region,
    valuable_localization_region,
)
from d2kd.regions.predictions import general_instance_region
from d2kd.regions.quality import main_and_valuable_region, top_quality_region
from d2kd.regions.scores import classification_gap, labelled_locations, main_region, teacher_confidence
from d2kd.regions.task_integration import learning_areas
from d2kd.regions.task_scores import ImportanceScore, cell_scores

__all__ = [
    "REGION_REGISTRY",
    "ImportanceScore",
    "cell_scores",
    "central_overlap",
    "check_options",
    "classification_gap",
    "fine_grained_region",
    "general_instance_region",
    "inside_box_region",
    "is_label_free",
    "label_free",
    "labelled_locations",
    "learning_areas",
    "main_and_valuable_region",
    "main_region",
    "teacher_confidence",
    "top_quality_region",
    "valuable_localization_region",
]
