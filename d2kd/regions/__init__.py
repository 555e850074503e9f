"""
Regions: where to distil, as one weight a location. Torch and fvcore only.

Functions of tensors come first; the registered ones apply them to the dense outputs of a step. For all of them:

* Weights are detached fp32, whatever the dtype of the inputs, which are left as they are.
* Boxes are absolute xyxy. Flat tensors of R locations, of one image, are in (level, H, W, A) order; maps are per level,
  (N, A, H, W).
* ``valid``, booleans of the locations, leaves out those that are False; None takes all.
* An option out of its range is a ValueError that begins with the option's name. A loss runs its regions on a batch of
  one cell when it is built, so that options are looked at before training.
"""

from d2kd.regions.base import REGION_REGISTRY, check_options, is_label_free, label_free, run_region
from d2kd.regions.boxes import (
    central_overlap,
    fine_grained_region,
    inside_box_region,
    valuable_localization_region,
)
from d2kd.regions.predictions import general_instance_region
from d2kd.regions.quality import main_and_valuable_region
from d2kd.regions.scores import classification_gap, labelled_locations, main_region, teacher_confidence
from d2kd.regions.task_integration import learning_regions
from d2kd.regions.task_scores import cell_scores

__all__ = [
    "REGION_REGISTRY",
    "cell_scores",
    "central_overlap",
    "classification_gap",
    "fine_grained_region",
    "general_instance_region",
    "inside_box_region",
    "is_label_free",
    "label_free",
    "labelled_locations",
    "learning_regions",
    "main_and_valuable_region",
    "main_region",
    "run_region",
    "check_options",
    "teacher_confidence",
    "valuable_localization_region",
]
