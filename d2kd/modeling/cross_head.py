"""The crossed output: the student's taps through the rest of the teacher's head (CrossKD, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2kd.losses.align import align_statistics
from d2kd.modeling.adapters import Adapter, get_adapter
from d2kd.modeling.dense_output import Assignment, DenseOutput
from d2kd.modeling.overlap import Overlap
from d2kd.modeling.taps import Taps, run_block
from d2kd.modeling.teacher import TeacherRun

__all__ = ["cross_head", "crossed_assignment", "crossed_output", "tap_index", "tap_indices"]


def cross_head(
    adapter: Adapter,
    head: nn.Module,
    student_taps: Taps,
    teacher_taps: Taps,
    *,
    student_indices: Mapping[str, int],
    teacher_indices: Mapping[str, int],
    levels: Sequence[int] | None = None,
    tap_adapters: Mapping[str, nn.Module] | None = None,
    align: bool = True,
) -> list[list[Tensor]]:
    """
    Send the student's taps through the last blocks and the predictors of the teacher's ``head`` (in eval mode).

    Each tap is first brought to the statistics of the teacher's tap and, as the papers' code does, passed through a
    ReLU unless it is the head's input (index 0). Gradient flows to the student's taps; the teacher's parameters
    require none.

    Args:
        adapter: how to read the teacher.
        student_taps, teacher_taps: (branch, index) -> one (N, C, H, W) map a level; equal shapes, but for C where
            there are ``tap_adapters``.
        student_indices, teacher_indices: for each branch, the number of blocks before the tap.
        levels: which of the teacher's levels these are; None: all.
        tap_adapters: for each branch, from the student's channels to the teacher's; None: none.
        align: align statistics and apply the ReLU; False sends the taps as they are.

    Returns:
        raw predictions as ``head.forward`` returns them: lists of per-level maps.
    """
    towers = adapter.towers(head)
    if levels is None:
        levels = range(len(next(iter(teacher_taps.values()))))
    per_level = []
    for i, level in enumerate(levels):
        outputs = {}
        for branch, blocks in towers.items():
            index = teacher_indices[branch]
            x = student_taps[branch, student_indices[branch]][i]
            if align:
                with torch.autocast(x.device.type, enabled=False):
                    if tap_adapters is not None:
                        x = tap_adapters[branch](x.to(tap_adapters[branch].weight.dtype))
                    x = align_statistics(x, teacher_taps[branch, index][i])
                if index > 0:
                    x = F.relu(x)
            for block in blocks[index:]:
                x = run_block(block, x, level)
            outputs[branch] = x
        per_level.append(adapter.predict(head, level, outputs))
    return [list(maps) for maps in zip(*per_level)]


def tap_index(detector: DenseDetector, branch: str, tail: int) -> int:
    """Number of tower blocks before the tap that leaves ``tail`` of them; the pairing check sees that they exist."""
    return len(get_adapter(detector).towers(detector.head)[branch]) - tail


def tap_indices(detector: DenseDetector, tails: Iterable[int]) -> dict[str, set[int]]:
    """For each branch, :func:`tap_index` of all ``tails``; nothing without any."""
    tails = set(tails)
    branches = get_adapter(detector).towers(detector.head) if tails else ()
    return {branch: {tap_index(detector, branch, tail) for tail in tails} for branch in branches}


def crossed_output(
    student: DenseDetector,
    teacher: DenseDetector,
    student_taps: Taps,
    teacher_run: TeacherRun,
    overlap: Overlap,
    *,
    tail: int,
    tap_adapters: Mapping[str, nn.Module] | None = None,
) -> DenseOutput:
    """
    :func:`cross_head` on the levels that both have, as a dense output in the teacher's anchors and the common classes.

    Args:
        student, teacher: the two detectors.
        student_taps: of the common levels.
        teacher_run: what the teacher made of the batch.
        overlap: which levels and classes are common.
        tail: number of the teacher's tower blocks that the taps are sent through.
        tap_adapters: see :func:`cross_head`.
    """
    adapter = get_adapter(teacher)
    branches = adapter.towers(teacher.head)
    predictions = cross_head(
        adapter,
        teacher.head,
        student_taps,
        teacher_run.taps,
        student_indices={branch: tap_index(student, branch, tail) for branch in branches},
        teacher_indices={branch: tap_index(teacher, branch, tail) for branch in branches},
        levels=overlap.teacher_levels,
        tap_adapters=tap_adapters,
    )
    own = teacher_run.output
    anchors = [Boxes(x.permute(1, 2, 0, 3).flatten(0, 2)) for x in own.anchors]
    output = adapter.dense_output(teacher, predictions, anchors)
    return replace(output, decode=own.decode).with_classes(overlap.teacher_classes)


def crossed_assignment(
    teacher: DenseDetector,
    teacher_run: TeacherRun,
    student_assignment: Assignment,
    gt_instances: Sequence[Instances],
    overlap: Overlap,
) -> Assignment:
    """
    The labels of the anchors that a crossed output lives in: the student's where its layout is the same. Elsewhere the
    teacher labels all its own levels, since where an object belongs may depend on levels that the student lacks.

    Args:
        teacher: the detector.
        teacher_run: what it made of the batch.
        student_assignment: the student's own, on the common levels and classes.
        gt_instances: the images' annotations.
        overlap: which levels and classes are common.
    """
    if overlap.same_layout:
        return student_assignment
    gt_instances = overlap.in_teacher_classes(gt_instances)
    labelled = teacher.label_anchors(teacher_run.anchors, gt_instances)
    assignment = get_adapter(teacher).assignment(
        teacher, labelled, gt_instances, teacher_run.sizes, num_labelled=student_assignment.num_labelled
    )
    sizes = [tuple(x.shape[2:]) for x in student_assignment.labels]
    return assignment.select(overlap.teacher_levels, sizes).with_classes(overlap.teacher_classes)
