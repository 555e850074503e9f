"""TID's presets: its three modules are described in secondary sources, its numbers are reconstructed."""

from __future__ import annotations

from detectron2.config import LazyCall as L

from d2kd.losses import TaskIntegrationKD
from d2kd.methods.base import SAME_LOCATIONS, Method, warm_up


def _tid(*, min_teacher_score: float) -> Method:
    losses = dict(
        tid=L(TaskIntegrationKD)(
            weight=1.0,
            region_weights=dict(weak=4.0, key=2.0, rest=1.0),
            combine="product",
            min_teacher_score=min_teacher_score,
            **warm_up(),
        )
    )
    return Method(
        paper="Classification and regression Task Integration in distillation for object detectors "
        "(Su et al., Neurocomputing 624, 2025, arXiv 2404.01699)",
        needs=(SAME_LOCATIONS, "features of the same width, or losses.tid.projector_channels"),
        presets={family: losses for family in ("RetinaNet", "FCOS", "GFL", "ATSS")},
        reconstructed="TID's class scores, thresholds and weights; the rest from descriptions by others",
    )


TID = _tid(min_teacher_score=0.0)
#: Weak cells only where the teacher itself is at least medium in both tasks.
TID_RELIABLE = _tid(min_teacher_score=2.25)
