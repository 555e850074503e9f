"""
TID's areas: where the student has yet to learn, by what both tasks of both detectors make of the objects.

After Su et al., "Classification and regression Task Integration in distillation for object detectors" (TID,
Neurocomputing 624, 2025; preprint arXiv:2404.01699), reconstructed: of the paper only the abstracts could be read.
They say that both tasks' outputs are quantified and mapped onto the features, and that this gives key and weak areas.
Reviews of the paper, not its authors' words, give the table of the localisation's scores, say that the two tasks'
scores are multiplied, and that weak areas come from the difference between the teacher's and the student's. All else
is this project's choice: the scores of the classification, how a box that meets no object counts, all thresholds, the
key area and the weights of cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2kd.regions.base import REGION_REGISTRY, check_bool, check_choice, check_count
from d2kd.regions.task_scores import REGION, ImportanceScore, cell_scores, check_range, iou_thresholds_of
from d2kd.structures import Assignment, DenseOutput

# Scores that differ by no more are equal: products of one table may differ in their last bit.
_TOLERANCE = 1e-4


@torch.no_grad()
def learning_areas(
    teacher: Tensor,
    source: Tensor,
    *,
    known: Tensor,
    labelled: Tensor | None = None,
    objects: Tensor | None = None,
    overlaps: Tensor | None = None,
    top: float = 4.0,
    key_threshold: float = 2.25,
    min_gap: float = 0.0,
    min_teacher_score: float = 0.0,
    key_from: str = "teacher",
    weak_topk: int | None = None,
    drop_student_better: bool = False,
    cell_weight: str = "value",
) -> dict[str, Tensor]:
    """
    Weak, key and other cells from their scores, TID's assessment of what has been learnt.

        weak: teacher - student > min_gap (delta_w), and teacher >= min_teacher_score (m_w)
        key:  teacher >= key_threshold (theta_k), and not weak
        rest: all else

    While the student is bad everywhere nearly all that the teacher is good at is weak; it turns into key as the
    student catches up. Scores within 1e-4 of one another are equal.

    Args:
        teacher, source: (N, M) scores of the cells.
        known: (N, M) booleans: others are of the rest.
        labelled: (N, M) booleans: cells that hold a positive; read by ``key_from``.
        objects: (N, M) index of the object that the teacher's score is about; read by ``weak_topk``.
        overlaps: (N, M) its IoU.
        top: the highest score there is.
        key_threshold: in [0, top]; not read where ``key_from`` is "gt".
        min_gap, min_teacher_score: in [0, top].
        key_from: "teacher": as above; "gt": the cells ``labelled`` in place of those that the teacher is good at;
            "either": both.
        weak_topk: of each object at most this many weak cells, those of the largest gap, of equals those of the
            largest IoU; None: all. Cells that it leaves out may be key.
        drop_student_better: take key cells where the student's score is higher out of every area.
        cell_weight: "value": the gap on weak cells, teacher / top on key, 1 on the rest; "uniform": 1.

    Returns:
        "weak", "key" and "rest": (N, M) fp32 weights, 0 outside. Disjoint; without ``drop_student_better`` they
        cover all cells.

    Raises:
        ValueError: an option out of its range.
    """
    check_choice(REGION, "key_from", key_from, ("teacher", "gt", "either"))
    if key_from != "gt":
        check_range("key_threshold", key_threshold, 0, top)
    check_range("min_gap", min_gap, 0, top)
    check_range("min_teacher_score", min_teacher_score, 0, top)
    if weak_topk is not None:
        check_count(REGION, "weak_topk", weak_topk, 1)
    check_bool(REGION, "drop_student_better", drop_student_better)
    check_choice(REGION, "cell_weight", cell_weight, ("value", "uniform"))

    gap = teacher - source
    weak = known & (gap > min_gap + _TOLERANCE) & (teacher >= min_teacher_score - _TOLERANCE)
    if weak_topk is not None:
        weak = torch.stack([_first_of_each(*cells, weak_topk) for cells in zip(weak, objects, gap, overlaps)])
    key = labelled if key_from == "gt" else teacher >= key_threshold - _TOLERANCE
    if key_from == "either":
        key = key | labelled
    key = key & known & ~weak
    rest = ~(weak | key)
    if drop_student_better:
        key = key & (gap >= -_TOLERANCE)
    if cell_weight == "uniform":
        return {"weak": weak.float(), "key": key.float(), "rest": rest.float()}
    return {"weak": gap * weak, "key": teacher / top * key, "rest": rest.float()}


def _first_of_each(cells: Tensor, objects: Tensor, gap: Tensor, overlaps: Tensor, count: int) -> Tensor:
    """Of one image's ``cells`` (M,) the ``count`` of each object with the largest gap, of equals the largest IoU."""
    order = cells.nonzero().squeeze(1)
    for values, descending in ((overlaps, True), (gap, True), (objects, False)):
        order = order[values[order].sort(descending=descending, stable=True).indices]
    group = objects[order]
    rank = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    return torch.zeros_like(cells).index_fill_(0, order[rank < count], True)


@REGION_REGISTRY.register()
def task_integration(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    score: str = "discrete",
    alpha: float = 0.5,
    combine: str = "product",
    cls_mode: str = "score",
    iou_values: tuple[float, float, float] = (2.0, 1.5, 0.4),
    cls_values: tuple[float, float, float] = (2.0, 1.5, 0.4),
    iou_thresholds: str | tuple[float, float] = "matcher",
    cls_thresholds: tuple[float, float] = (0.05, 0.5),
    centerness: bool = False,
    key_threshold: float | None = None,
    min_gap: float = 0.0,
    min_teacher_score: float = 0.0,
    key_from: str = "teacher",
    weak_topk: int | None = None,
    drop_student_better: bool = False,
    cell_weight: str = "value",
) -> dict[str, list[Tensor]]:
    """
    The areas "weak", "key" and "rest" of :func:`learning_areas`, from the :class:`ImportanceScore` of source and
    teacher; see there for the options. ``key_threshold`` None is a score that is medium in both tasks, 2.25 with the
    values of the table. A cell has the highest score of its anchors, and its anchors one weight.

    A location outside the assignment's valid ones does not count, and a cell without any that does is of the rest; so
    is every cell of an image without objects. The labels are not read but by ``key_from``.
    """
    rule = ImportanceScore(
        score, alpha, combine, cls_mode, iou_values, cls_values, iou_thresholds, cls_thresholds, centerness
    )
    thresholds = iou_thresholds_of(rule, source, assignment)
    of_source, of_teacher = (cell_scores(output, assignment, rule, thresholds) for output in (source, teacher))
    valid, labelled = (
        torch.cat([x.any(1).flatten(1) for x in maps], dim=1) for maps in (assignment.valid, assignment.positives)
    )
    areas = learning_areas(
        of_teacher[0],
        of_source[0],
        known=torch.stack([row & (len(boxes) > 0) for row, boxes in zip(valid, assignment.gt_boxes)]),
        labelled=labelled,
        objects=of_teacher[1],
        overlaps=of_teacher[2],
        top=rule.top,
        key_threshold=rule.medium if key_threshold is None else key_threshold,
        min_gap=min_gap,
        min_teacher_score=min_teacher_score,
        key_from=key_from,
        weak_topk=weak_topk,
        drop_student_better=drop_student_better,
        cell_weight=cell_weight,
    )
    return {area: _expanded(weights, assignment.valid) for area, weights in areas.items()}


def _expanded(weights: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """(N, M) weights of all levels' cells -> per level, (N, A, H, W) of the sizes of ``like``; views."""
    levels = weights.split([x[0, 0].numel() for x in like], dim=1)
    return [flat.view(len(x), 1, *x.shape[2:]).expand(x.shape) for flat, x in zip(levels, like)]
