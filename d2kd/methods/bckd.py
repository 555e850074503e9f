"""BCKD's presets."""

from detectron2.config import LazyCall as L

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.methods.base import SAME_LOCATIONS, Method

# alpha1 = 1, alpha2 = 4, beta = 1, GIoU from the GFL config; carried over to the other detectors, for which no
# configuration was published.
_LOSSES = dict(
    bckd_cls=L(BinaryClassificationKD)(weight=1.0, beta=1.0, source="student", region="all_locations"),
    bckd_loc=L(IoULocalizationKD)(weight=4.0, iou_type="giou", source="student", region="gap"),
)

BCKD = Method(
    paper="Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection, ICCV 2023",
    needs=(SAME_LOCATIONS,),
    presets={"RetinaNet": _LOSSES, "FCOS": _LOSSES, "GFL": _LOSSES, "ATSS": _LOSSES},
)
