"""
The presets: method x detector family -> losses node, with the papers' hyper-parameters.

``methods.md`` in the docs says where each figure comes from and which of them are carried over from another detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from difflib import get_close_matches

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD

__all__ = ["METHODS", "get_losses"]

# BCKD: alpha1 = 1, alpha2 = 4, beta = 1, GIoU from the GFL config; carried over to RetinaNet and FCOS, for which no
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


#: method -> detector family -> losses node.
METHODS: Mapping[str, Mapping[str, Mapping[str, DictConfig]]] = {
    "bckd": {"RetinaNet": _BCKD, "FCOS": _BCKD},
    "crosskd": {
        "RetinaNet": _crosskd(tail=1, cls_weight=1.0, iou_type="giou", loc_weight=1.0),
        "FCOS": _crosskd(tail=2, cls_weight=0.4, iou_type="neg_log_iou", loc_weight=0.75),
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
