"""
Adaptive training sample selection (ATSS, arXiv:1912.02424, algorithm 1): which anchors answer for which object.

Pure functions of one image's anchors and objects, read by the detectors that are trained with it and by LD's region.
Numbers as in the implementation that GFL and LD were trained with, which keeps an anchor only where its centre is
inside the object by more than 0.01 pixel.

All raise ValueError for another shape or dtype than they ask for, and for fewer than two candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from d2kd.structures import box_centers, iou, object_chunks, squared_distance

__all__ = ["adaptive_thresholds", "assign", "candidates", "check_topk"]

# An anchor's centre is inside an object where it is farther than this, in pixels, from each of its sides.
INSIDE_MARGIN = 0.01


def check_topk(topk: int, field: str = "topk") -> int:
    """
    Raises:
        ValueError: no whole number of candidates that has a standard deviation.
    """
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 2:
        raise ValueError(
            f"{field} is {topk!r}, expected a whole number of at least 2: the candidates of each level and object, "
            "whose IoUs need a standard deviation (ATSS: 9)."
        )
    return topk


@torch.no_grad()
def candidates(
    level_anchors: Sequence[Tensor], gt_boxes: Tensor, *, topk: int = 9, valid: Tensor | None = None
) -> Tensor:
    """
    The anchors nearest to each object: of every level the min(topk, its valid anchors) whose centres are nearest to
    the object's.

    Of anchors at one distance, those that ``torch.topk`` returns are taken, which may differ between devices. Where
    a cell has several anchors, each counts: the nine nearest of RetinaNet's are those of one cell.

    Args:
        level_anchors: per level, (R_l, 4) anchors.
        gt_boxes: (G, 4) objects of the image.
        topk: candidates of a level and object, at least 2.
        valid: (R,) booleans over the levels' anchors in a row.

    Returns:
        (G, C) int64 indices into the levels' anchors in a row, level by level. Valid anchors are not counted on another
        device than the CPU, where that would make the host wait: min(topk, all anchors) of every level, -1 for those
        that there are not.
    """
    check_topk(topk)
    _check_shapes(level_anchors, gt_boxes, valid)
    found, offset = [gt_boxes.new_zeros(len(gt_boxes), 0, dtype=torch.int64)], 0
    for anchors in level_anchors:
        end = offset + len(anchors)
        centers = box_centers(anchors.float())
        indices = torch.arange(offset, end, device=gt_boxes.device)
        kept = None if valid is None else valid[offset:end]
        if kept is not None and kept.device.type == "cpu":
            centers, indices, kept = centers[kept], indices[kept], None
        elif kept is not None:
            centers = centers.masked_fill(~kept[:, None], math.inf)
            indices = indices.masked_fill(~kept, -1)
        nearest = [
            squared_distance(box_centers(boxes.float())[:, None], centers)
            .topk(min(topk, len(centers)), largest=False)
            .indices
            for boxes in object_chunks(gt_boxes, len(centers))
        ]
        found.append(indices[torch.cat(nearest)])
        offset = end
    return torch.cat(found, dim=1)


def _check_shapes(level_anchors: Sequence[Tensor], gt_boxes: Tensor, valid: Tensor | None) -> None:
    for name, boxes in [("gt_boxes", gt_boxes), *((f"level_anchors[{i}]", x) for i, x in enumerate(level_anchors))]:
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} has shape {tuple(boxes.shape)}, expected (number of boxes, 4).")
    num_anchors = sum(len(x) for x in level_anchors)
    if valid is not None and (valid.shape != (num_anchors,) or valid.dtype != torch.bool):
        raise ValueError(
            f"valid is {valid.dtype} of shape {tuple(valid.shape)}, expected torch.bool of shape ({num_anchors},): "
            "one for each anchor of the levels in a row."
        )


def _thresholds(overlaps: Tensor) -> Tensor:
    """
    (G, C) candidates' IoUs, NaN for those that there are not -> (G,) mean + unbiased standard deviation, 0 for that of
    a single candidate.
    """
    if overlaps.numel() == 0:
        return overlaps.new_zeros(len(overlaps))
    if overlaps.device.type != "cpu":
        known = ~overlaps.isnan()
        count = known.sum(1, keepdim=True)
        mean = overlaps.nansum(1, keepdim=True) / count.clamp(min=1)
        variance = (overlaps - mean).square().nansum(1, keepdim=True) / (count - 1).clamp(min=1)
        return (mean + variance.sqrt()).squeeze(1)
    return overlaps.mean(1) + (overlaps.std(1) if overlaps.shape[1] > 1 else 0)


def _candidates_and_overlaps(
    level_anchors: Sequence[Tensor], gt_boxes: Tensor, topk: int, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The candidates (G, C), 0 for those that there are not, their boxes (G, C, 4) and their IoUs with the object (G, C),
    NaN for those that there are not.
    """
    indices = candidates(level_anchors, gt_boxes, topk=topk, valid=valid)
    absent, indices = indices < 0, indices.clamp(min=0)
    anchors = torch.cat([x.float() for x in level_anchors])[indices]
    return indices, anchors, iou(anchors, gt_boxes.float()[:, None]).masked_fill_(absent, math.nan)


@torch.no_grad()
def adaptive_thresholds(
    level_anchors: Sequence[Tensor], gt_boxes: Tensor, *, topk: int = 9, valid: Tensor | None = None
) -> Tensor:
    """
    The IoU that an object asks of its anchors: mean + unbiased standard deviation of its candidates' IoUs.

    Args:
        level_anchors, gt_boxes, topk, valid: as of :func:`candidates`.

    Returns:
        (G,) fp32, finite; 0 where there are no candidates.
    """
    return _thresholds(_candidates_and_overlaps(level_anchors, gt_boxes, topk, valid)[2])


@torch.no_grad()
def assign(level_anchors: Sequence[Tensor], gt_boxes: Tensor, *, topk: int = 9, valid: Tensor | None = None) -> Tensor:
    """
    The object that each anchor answers for: an anchor does where it is a candidate, its IoU reaches the object's
    :func:`adaptive_thresholds` and its centre is inside the object. Of several objects it takes the one of largest
    IoU, the first of equals. An object may end without anchors.

        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8]])
        >>> assign([anchors], torch.tensor([[7.0, 0, 17, 8]]))
        tensor([-1,  0, -1])

    Args:
        level_anchors, gt_boxes, topk, valid: as of :func:`candidates`.

    Returns:
        (R,) int64: index of the object, -1 for none, over the levels' anchors in a row.
    """
    indices, anchors, overlaps = _candidates_and_overlaps(level_anchors, gt_boxes, topk, valid)
    num_anchors, num_gt = sum(len(x) for x in level_anchors), len(gt_boxes)
    center, boxes = box_centers(anchors), gt_boxes.float()[:, None]
    inside = torch.cat([center - boxes[..., :2], boxes[..., 2:] - center], dim=-1).amin(-1) > INSIDE_MARGIN
    positive = inside & (overlaps >= _thresholds(overlaps)[:, None])

    indices, overlaps = indices.flatten(), overlaps.masked_fill(~positive, -1).flatten()
    best = overlaps.new_full((num_anchors,), -1).scatter_reduce_(0, indices, overlaps, "amax")
    objects = torch.arange(num_gt, device=indices.device).repeat_interleave(len(indices) // max(1, num_gt))
    objects = objects.masked_fill((overlaps < 0) | (overlaps < best[indices]), num_gt)
    matched = indices.new_full((num_anchors,), num_gt).scatter_reduce_(0, indices, objects, "amin")
    return matched.masked_fill_(matched == num_gt, -1)
