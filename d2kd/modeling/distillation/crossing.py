"""The crossed output, and the labels of its anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from d2kd.modeling.adapters import Taps, cross_head, get_adapter, tap_index
from d2kd.modeling.detectors.interface import label_anchors_of
from d2kd.modeling.distillation.overlap import Overlap
from d2kd.modeling.distillation.teacher_engine import own_precision
from d2kd.modeling.distillation.teacher_step import TeacherStep
from d2kd.structures import Assignment, DenseOutput

__all__ = ["crossed_assignment", "crossed_output"]


def crossed_output(
    student: DenseDetector,
    teacher: DenseDetector,
    student_taps: Taps,
    teacher_run: TeacherStep,
    overlap: Overlap,
    *,
    tail: int,
    tap_projectors: Mapping[str, nn.Conv2d] | None = None,
) -> DenseOutput:
    """
    :func:`cross_head` on the levels that both have, as a dense output in the teacher's anchors and the common classes.

    Args:
        student, teacher: the two detectors.
        student_taps: of the common levels.
        teacher_run: what the teacher made of the batch.
        overlap: which levels and classes are common.
        tail: number of the teacher's tower blocks that the taps are sent through.
        tap_projectors: see :func:`cross_head`.
    """
    adapter = get_adapter(teacher)
    branches = adapter.towers(teacher.head)
    if isinstance(teacher.head, FSDPModule):  # which gathers its parameters for its own forward alone
        teacher.head.unshard()
    with own_precision(teacher):
        predictions = cross_head(
            adapter,
            teacher.head,
            student_taps,
            teacher_run.taps,
            student_indices={branch: tap_index(student, branch, tail) for branch in branches},
            teacher_indices={branch: tap_index(teacher, branch, tail) for branch in branches},
            levels=overlap.teacher_levels,
            tap_projectors=tap_projectors,
        )
    predictions = [[x.contiguous() for x in maps] for maps in predictions]
    own = teacher_run.output
    anchors = [Boxes(x.permute(1, 2, 0, 3).flatten(0, 2)) for x in own.anchors]
    output = adapter.dense_output(teacher, predictions, anchors)
    return replace(output, decode=own.decode).merge_classes(overlap.teacher_classes)


def crossed_assignment(
    teacher: DenseDetector,
    teacher_run: TeacherStep,
    student_assignment: Assignment,
    gt_instances: Sequence[Instances],
    overlap: Overlap,
    common_objects: Sequence[Tensor] | None,
) -> Assignment:
    """
    The labels of the anchors that a crossed output lives in: the student's where both have the same anchors. Elsewhere
    the teacher labels all its own levels, since where an object belongs may depend on levels that the student lacks.

    Args:
        teacher: the detector.
        teacher_run: what it made of the batch.
        student_assignment: the student's own, on the common levels and classes.
        gt_instances: the images' annotations.
        overlap: which levels and classes are common.
        common_objects: of each image those of the common classes, see :meth:`Overlap.common_objects`.
    """
    if overlap.same_anchors:
        return student_assignment
    gt_instances = overlap.in_teacher_classes(gt_instances, common_objects)
    labelled = label_anchors_of(teacher)(teacher_run.anchors, gt_instances)
    assignment = get_adapter(teacher).assignment(
        teacher, labelled, gt_instances, teacher_run.sizes, num_labelled=student_assignment.num_labelled
    )
    sizes = [(x.shape[-2], x.shape[-1]) for x in student_assignment.labels]
    return assignment.select(overlap.teacher_levels, sizes).with_classes(overlap.first_teacher_classes)
