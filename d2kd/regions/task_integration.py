"""
TID's regions: where the student has yet to learn, by what both tasks of both detectors make of the objects.

After Su et al., "Classification and regression Task Integration in distillation for object detectors" (TID,
Neurocomputing 624, 2025; preprint arXiv:2404.01699), reconstructed: of the paper only the abstracts could be read.
They say that both tasks' outputs are quantified and mapped onto the features, and that this gives key and weak areas,
as the paper calls them. Reviews of the paper, not its authors' words, give the table of the localisation's scores, say
that the two tasks' scores are multiplied, and that weak areas come from the difference between the teacher's and the
student's. All else is this project's choice: the scores of the classification, how a box that meets no object counts,
all thresholds, the rule for key cells and the weights of cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2kd.regions.base import REGION_REGISTRY, check_option, is_number
from d2kd.regions.task_scores import GOOD, MEDIUM, cell_scores, combined
from d2kd.structures import Assignment, DenseOutput

# Scores that differ by no more are equal: products of one table may differ in their last bit.
_TOLERANCE = 1e-4


@torch.no_grad()
def learning_regions(
    teacher: Tensor, source: Tensor, *, known: Tensor, combine: str = "product", min_teacher_score: float = 0.0
) -> dict[str, Tensor]:
    """
    Weak, key and other cells from their scores, TID's assessment of what has been learnt.

        weak: teacher > student, and teacher >= min_teacher_score       weight teacher - student
        key:  teacher medium in each task that counts, and not weak     weight teacher / the highest score there is
        rest: all else                                                  weight 1

    While the student is bad everywhere nearly all that the teacher is good at is weak; it turns into key as the
    student catches up. Scores within 1e-4 of one another are equal.

        >>> teacher, student = torch.tensor([[4, 4, 0.16]]), torch.tensor([[2.25, 4, 0.16]])
        >>> learning_regions(teacher, student, known=torch.ones(1, 3, dtype=torch.bool))
        {'weak': tensor([[1.7500, 0.0000, 0.0000]]), 'key': tensor([[0., 1., 0.]]), 'rest': tensor([[0., 0., 1.]])}

    Args:
        teacher, source: (N, M) scores of the cells.
        known: (N, M) booleans: others are of the rest.
        combine: how the scores were made of both tasks', see :func:`d2kd.regions.task_scores.combined`.
        min_teacher_score: from 0 to the highest score there is.

    Returns:
        "weak", "key" and "rest": (N, M) weights, 0 outside. Disjoint; together they cover all cells.
    """
    top, medium = combined(GOOD, GOOD, combine), combined(MEDIUM, MEDIUM, combine)
    in_range = is_number(min_teacher_score) and 0 <= min_teacher_score <= top
    check_option("min_teacher_score", min_teacher_score, in_range, f"a number in [0, {top:g}]")
    gap = teacher - source
    weak = known & (gap > _TOLERANCE) & (teacher >= min_teacher_score - _TOLERANCE)
    key = (teacher >= medium - _TOLERANCE) & known & ~weak
    rest = ~(weak | key)
    return {"weak": gap * weak, "key": teacher / top * key, "rest": rest.float()}


@REGION_REGISTRY.register()
def task_integration(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    combine: str = "product",
    min_teacher_score: float = 0.0,
) -> dict[str, list[Tensor]]:
    """
    The regions "weak", "key" and "rest" of :func:`learning_regions`, from the :func:`cell_scores` of source and
    teacher. A cell's anchors have its weight.

    A location that is not valid does not count, and a cell without any that does is of the rest; so is every cell of an
    image without objects. The labels are not read.
    """
    of_source, of_teacher = (cell_scores(output, assignment, combine=combine) for output in (source, teacher))
    valid = torch.cat([x.any(1).flatten(1) for x in assignment.valid], dim=1)
    known = torch.stack([row & (len(boxes) > 0) for row, boxes in zip(valid, assignment.gt_boxes)])
    regions = learning_regions(of_teacher, of_source, known=known, combine=combine, min_teacher_score=min_teacher_score)
    return {name: _expanded(weights, assignment.valid) for name, weights in regions.items()}


def _expanded(weights: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """(N, M) weights of all levels' cells -> per level, (N, A, H, W) of the sizes of ``like``; views."""
    levels = weights.split([x[0, 0].numel() for x in like], dim=1)
    return [flat.view(len(x), 1, *x.shape[2:]).expand(x.shape) for flat, x in zip(levels, like)]
