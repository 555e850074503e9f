"""
TID's scores: how good both tasks' outputs are for the objects, cell by cell.

See :mod:`d2kd.regions.task_integration` for what of them is known of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from d2kd.regions.base import check_choice
from d2kd.structures import Assignment, DenseOutput, iou, object_chunks

#: Scores of a good, a medium and a poor output of one task. Reviews of the paper give these for the localisation; the
#: classification has the same by this project's choice.
GOOD, MEDIUM, POOR = 2.0, 1.5, 0.4
#: What the two tasks' scores are made into; the reviews have the product.
COMBINATIONS = ("product", "sum", "cls", "reg")

# Probabilities of the object's class from which a classification is medium, and good; this project's choice.
_MEDIUM_PROBABILITY, _GOOD_PROBABILITY = 0.05, 0.5
# (negative, positive) of detectors without a matcher: those of Detectron2's RetinaNet.
_IOU_THRESHOLDS = (0.4, 0.5)

_Score = TypeVar("_Score", float, Tensor)


def combined(cls: _Score, reg: _Score, combine: str) -> _Score:
    """The two tasks' scores as one, by one of :data:`COMBINATIONS`; "cls" and "reg" are that of one task alone."""
    check_choice("combine", combine, COMBINATIONS)
    if combine in ("cls", "reg"):
        return cls if combine == "cls" else reg
    return cls * reg if combine == "product" else cls + reg


def localization_scores(overlap: Tensor, negative: float, positive: float) -> Tensor:
    """
    Good where an IoU reaches ``positive``, medium where it exceeds ``negative``; poor where it is 0, whatever they are.
    """
    scores = torch.full_like(overlap, POOR).masked_fill_(overlap > negative, MEDIUM)
    return scores.masked_fill_((overlap >= positive) & (overlap > 0), GOOD)


def classification_scores(probability: Tensor, hit: Tensor) -> Tensor:
    """
    Good where the object's class has a probability of 0.5, medium from 0.05; poor without a ``hit``, where another
    class has a higher one.
    """
    scores = torch.full_like(probability, POOR).masked_fill_(hit & (probability >= _MEDIUM_PROBABILITY), MEDIUM)
    return scores.masked_fill_(hit & (probability >= _GOOD_PROBABILITY), GOOD)


@torch.no_grad()
def nearest_object(boxes: Tensor, gt_boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """
    The object of its image that each box has the largest IoU with, the first of equals.

    Goes through the objects in chunks: no table of all pairs is kept.

        >>> boxes, objects = torch.tensor([[[0.0, 0, 4, 4], [9, 9, 12, 12]]]), [torch.tensor([[0.0, 0, 8, 4]])]
        >>> nearest_object(boxes, objects)
        (tensor([[0.5000, 0.0000]]), tensor([[ 0, -1]]))

    Args:
        boxes: (N, R, 4).
        gt_boxes: (G, 4) objects of each of the N images.

    Returns:
        (N, R) fp32 IoUs, 0 where a box meets no object; and (N, R) int64 indices of the objects, -1 there.
    """
    # Column by column, objects first: all that is read for one object lies in a row.
    columns = boxes.float().movedim(-1, 0).contiguous()
    overlap = torch.zeros_like(columns[0])
    index = torch.full_like(overlap, -1, dtype=torch.int64)
    for n, objects in enumerate(gt_boxes):
        offset = 0
        # Image by image: areas are those of its boxes, not of pairs.
        for chunk in object_chunks(objects.float(), boxes.shape[1]) if len(objects) else ():
            best, which = iou(columns[:, n].t(), chunk[:, None]).max(0)
            better = best > overlap[n]
            overlap[n] = torch.where(better, best, overlap[n])
            index[n] = torch.where(better, which.add_(offset), index[n])
            offset += len(chunk)
    return overlap, index


@torch.no_grad()
def cell_scores(output: DenseOutput, assignment: Assignment, *, combine: str = "product") -> Tensor:
    """
    The scores of one detector on its feature cells: of each the highest of its anchors', where that of an anchor is
    what ``combine`` makes of its box and its class scores for one object, the one that its box is nearest to. The IoUs
    that count are those of the student's own matcher, 0.4 and 0.5 if it has none. A box that meets no object is poor in
    both tasks, whatever its class, as all are in an image without objects. A location that is not valid scores 0.

    Args:
        output: the detector's dense output, in the anchors of the assignment.
        assignment: read for the objects, the valid locations and the matcher's IoUs.
        combine: one of :data:`COMBINATIONS`.

    Returns:
        (N, M) scores of the M cells of all levels, (H, W) after (H, W).
    """
    sizes = [x[0].numel() for x in assignment.valid]
    # In (A, H, W) order, which is that of the class maps: these are read where they lie.
    overlap, index = nearest_object(torch.cat([level.flatten(1, 3) for level in output.boxes], 1), assignment.gt_boxes)
    known = zip(assignment.gt_classes, index.clamp(min=0))
    classes = torch.stack([of[row] if len(of) else row for of, row in known])
    flat = (rows.split(sizes, dim=1) for rows in (overlap, index, classes))
    negative, positive = assignment.iou_thresholds or _IOU_THRESHOLDS

    cells = []
    for logits, valid, overlap, index, target in zip(output.logits, assignment.valid, *flat):
        own = logits.gather(output.class_dim, target.view(valid.shape).unsqueeze(output.class_dim))
        own = own.squeeze(output.class_dim)
        hit = (own == logits.amax(output.class_dim)) & (index.view(valid.shape) >= 0)
        cls = classification_scores(own.float().sigmoid(), hit)
        reg = localization_scores(overlap.view(valid.shape), negative, positive)
        cells.append(combined(cls, reg, combine).masked_fill(~valid, 0).amax(1).flatten(1))
    return torch.cat(cells, dim=1)
