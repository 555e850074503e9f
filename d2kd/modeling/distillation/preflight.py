"""Whether the teacher knows this data, asked once in a run, on images of its first batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor

from d2kd.modeling.distillation.examination import examine, judge
from d2kd.modeling.distillation.overlap import Overlap
from d2kd.modeling.distillation.teacher import Teacher

__all__ = ["BATCHES", "IMAGES", "Preflight", "pick_images"]

# Below Detectron2's logger: whichever trainer runs has set that one up.
logger = logging.getLogger(f"detectron2.{__name__}")

#: After how many batches of a process the verdict is given, and of how many images of theirs on each rank.
BATCHES, IMAGES = 20, 32


class Preflight:
    """
    Keeps some labelled images of the first :data:`BATCHES` batches, examines teacher and student on them, and warns, or
    stops the run. Until then it only holds on to images, so that these steps wait for nothing; afterwards it holds
    nothing. All ranks come to one verdict in one step.
    """

    def __init__(self) -> None:
        self._batches = 0
        self._done = False
        self._kept: list[Mapping[str, Any]] = []

    def see(
        self,
        student: DenseDetector,
        teacher: Teacher,
        overlap: Overlap,
        batched_inputs: Sequence[Mapping[str, Any]],
        *,
        input_format: str,
    ) -> None:
        """
        Args:
            batched_inputs: the batch of a training step, before the step changes anything.
            input_format: channel order of its images.

        Raises:
            ValueError: the teacher knows nothing of these images, or is read in a wrong way: on all ranks, in the step
                of the verdict.
        """
        if self._done or not teacher.preflight:
            return
        if self._batches < BATCHES:
            self._kept += pick_images(batched_inputs, IMAGES - len(self._kept), BATCHES - self._batches)
            self._batches += 1
            return
        self._done = True
        kept, self._kept = self._kept, []
        verdict = judge(
            examine(student, teacher, overlap, kept, input_format=input_format),
            has_class_map=teacher.class_map is not None,
            initial_norms=teacher.initial_norms,
        )
        logger.info("Preflight: %s", verdict.summary)
        for warning in verdict.warnings:
            logger.warning(warning)
        if verdict.stop is not None:
            raise ValueError(f"{verdict.stop} d2kd check shows more.")


def pick_images(batched_inputs: Sequence[Mapping[str, Any]], wanted: int, batches: int) -> list[Mapping[str, Any]]:
    """
    Of a batch its share of ``wanted`` images, where ``batches`` batches are left to take them from: labelled ones with
    objects. The images are copies: a loader may write the next ones into the same memory.
    """
    labelled = (
        item
        for item in batched_inputs
        if not item.get("unlabeled", False)
        and len(item.get("instances", ()))
        and isinstance(item.get("image"), Tensor)  # what is none is refused by the step, on all ranks
    )
    share = -(-wanted // batches)
    return [{**item, "image": item["image"].clone()} for item, _ in zip(labelled, range(share))]
