"""Regions made of anchors and objects: where in an image the objects are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2kd.regions.atss import adaptive_thresholds
from d2kd.regions.base import (
    REGION_REGISTRY,
    check_bool,
    check_choice,
    check_fraction,
    flat_anchors,
    flat_maps,
    level_maps,
    max_score,
)
from d2kd.structures import (
    Assignment,
    DenseOutput,
    box_areas,
    box_centers,
    image_chunks,
    intersection,
    iou,
    object_chunks,
    squared_distance,
)

# Of areas and squared diagonals, in squared pixels: so that boxes without extent give a number.
_EPS = 1e-6


@torch.no_grad()
def central_overlap(anchors: Tensor, boxes: Tensor, *, metric: str = "anchor_iof") -> Tensor:
    """
    Overlap less the penalty of distance, X - rho^2 / c^2: rho between the centres, c the diagonal of the smallest box
    around both.

        >>> anchor, box = torch.tensor([0.0, 0, 4, 4]), torch.tensor([0.0, 0, 8, 4])
        >>> central_overlap(anchor, box), central_overlap(anchor, box, metric="diou")
        (tensor(0.9500), tensor(0.4500))

    Args:
        anchors, boxes: (..., 4), broadcast.
        metric: X. "anchor_iof": the intersection over the anchor's area, as LD's code computes what it calls DIoU;
            not symmetric. "diou": IoU, which makes it DIoU (arXiv:1911.08287), as in LD's paper.

    Returns:
        (...) in (-1, 1].
    """
    check_choice("metric", metric, ("anchor_iof", "diou"))
    if metric == "diou":
        overlap = iou(anchors, boxes)
    else:
        overlap = intersection(anchors, boxes) / box_areas(anchors).clamp(min=_EPS)
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = anchors.unbind(-1), boxes.unbind(-1)
    width = torch.maximum(ax1, bx1).sub_(torch.minimum(ax0, bx0))
    height = torch.maximum(ay1, by1).sub_(torch.minimum(ay0, by0))
    diagonal = width.square_().add_(height.square_()).clamp_(min=_EPS)  # squared, as the distance is
    return overlap - squared_distance(box_centers(anchors), box_centers(boxes)).div_(diagonal)


@torch.no_grad()
def valuable_localization_region(
    level_anchors: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    *,
    gamma: float = 0.25,
    metric: str = "anchor_iof",
    weighting: str = "iou",
    topk: int = 9,
    valid: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """
    LD's valuable localisation region of a batch: the anchors n with gamma * t_g <= D(n, g) < t_g for an object g of
    their image, where t_g is the IoU that ATSS asks of g's anchors (:func:`d2kd.regions.atss.adaptive_thresholds`) and
    D :func:`central_overlap`: too far off to be positives, near enough to say where an edge is.

    "Localization Distillation for Dense Object Detection" (CVPR 2022, arXiv:2102.12252). The defaults are those of the
    authors' code, behind their results; the paper describes DIoU and a region of weight 1 beside the positives, which
    is ``metric="diou"``, ``weighting="mask"`` and ``excluded``, the positives. With the code's metric the region is
    about three times as large on the finest level.

    Args:
        level_anchors: per level, (R_l, 4).
        gt_boxes: (G, 4) objects of each of the N images.
        gamma: lower end of the band, as a share of t_g, in [0, 1). 0: all that overlaps more than it is off centre.
        metric: "anchor_iof" or "diou".
        weighting: "iou": the largest IoU with an object whose band the anchor is in. "mask": 1.
        topk: candidates of a level and object, from which t_g is made; at least 2.
        valid: (N, R) booleans: others are neither candidates nor in the region.
        excluded: (N, R) booleans: not in the region. A positive can be in the band, of its own or another object.

    Returns:
        (N, R) weights in [0, 1]; all 0 without objects.
    """
    check_fraction("gamma", gamma)
    check_choice("weighting", weighting, ("iou", "mask"))
    if valid is None or (valid.device.type == "cpu" and bool(valid.all())):
        of_all = adaptive_thresholds(level_anchors, torch.cat(list(gt_boxes)), topk=topk)
        thresholds = of_all.split([len(x) for x in gt_boxes])
    else:
        rows = zip(gt_boxes, valid)
        thresholds = tuple(adaptive_thresholds(level_anchors, x, topk=topk, valid=row) for x, row in rows)
    # Column by column, and objects first: all that is read for one object lies in a row.
    anchors = torch.cat([x.float() for x in level_anchors]).t().contiguous().t()
    weights = anchors.new_zeros(len(gt_boxes), len(anchors))
    for chunk in image_chunks(gt_boxes, len(anchors)):
        parts = [thresholds[n][part] for n, part in chunk]
        upper = torch.cat(parts)[:, None]
        boxes = torch.cat([gt_boxes[n][part] for n, part in chunk]).float()[:, None]
        overlap = central_overlap(anchors, boxes, metric=metric)
        inside = (overlap >= gamma * upper) & (overlap < upper)
        of_objects = iou(anchors, boxes) * inside if weighting == "iou" else inside.float()
        for (n, _), of_image in zip(chunk, of_objects.split([len(x) for x in parts])):
            weights[n] = torch.maximum(weights[n], of_image.amax(0))
    return _kept(weights, valid, excluded)


def _kept(weights: Tensor, valid: Tensor | None, excluded: Tensor | None) -> Tensor:
    if valid is not None:
        weights = weights * valid
    return weights if excluded is None else weights * ~excluded


@torch.no_grad()
def inside_box_region(
    anchors: Tensor, gt_boxes: Tensor, *, valid: Tensor | None = None, excluded: Tensor | None = None
) -> Tensor:
    """
    The anchors of one image whose centre is inside an object, of whatever size and on whatever level; strictly: not
    on its edge. It is the "inside GT box" region of feature imitation; without the positives, and weighted with the
    student's scores, it is what LD's code distils on FCOS beside the positives.

        >>> anchors = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [20, 20, 24, 24]])
        >>> inside_box_region(anchors, torch.tensor([[1.0, 1, 6, 6]]))
        tensor([1., 0., 0.])

    Args:
        anchors: (R, 4).
        gt_boxes: (G, 4) objects of the image.
        excluded: (R,) booleans: not in the region.

    Returns:
        (R,) weights, 1 or 0; all 0 without objects.
    """
    centers = box_centers(anchors.float())[:, None]
    inside = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for boxes in object_chunks(gt_boxes.float(), len(anchors)):
        x_inside, y_inside = (
            (centers[..., axis] > boxes[:, axis]) & (centers[..., axis] < boxes[:, axis + 2]) for axis in (0, 1)
        )
        inside |= x_inside.logical_and_(y_inside).any(1)
    return _kept(inside.float(), valid, excluded)


@torch.no_grad()
def fine_grained_region(
    anchors: Tensor, gt_boxes: Tensor, *, threshold: float = 0.5, valid: Tensor | None = None
) -> Tensor:
    """
    The anchors n of one image with IoU(n, g) > threshold * max_m IoU(m, g) for an object g: fine-grained feature
    imitation (CVPR 2019, arXiv:1906.03609), over the anchors of all levels as in LD's code.

        >>> anchors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 6], [6, 0, 14, 8]])
        >>> fine_grained_region(anchors, torch.tensor([[0.0, 0, 8, 8]]))
        tensor([1., 1., 0.])

    Args:
        anchors: (R, 4).
        gt_boxes: (G, 4) objects of the image.
        threshold: share of the object's best anchor's IoU, in [0, 1).
        valid: (R,) booleans: others are not in the region, nor are they an object's best anchor.

    Returns:
        (R,) weights, 1 or 0; all 0 without objects.
    """
    check_fraction("threshold", threshold)
    anchors = anchors.float()[:, None]
    inside = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    if not len(anchors):
        return inside.float()
    for boxes in object_chunks(gt_boxes.float(), len(anchors)):
        overlaps = iou(anchors, boxes)
        if valid is not None:
            overlaps = overlaps * valid[:, None]
        inside |= (overlaps > threshold * overlaps.amax(0)).any(1)
    return inside.float()


@REGION_REGISTRY.register()
def valuable_localization(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    gamma: float = 0.25,
    metric: str = "anchor_iof",
    weighting: str = "iou",
    exclude_positives: bool = False,
    topk: int = 9,
) -> list[Tensor]:
    """:func:`valuable_localization_region` of the batch; ``exclude_positives`` leaves out the positives."""
    check_bool("exclude_positives", exclude_positives)
    weights = valuable_localization_region(
        flat_anchors(source),
        assignment.gt_boxes,
        gamma=gamma,
        metric=metric,
        weighting=weighting,
        topk=topk,
        valid=flat_maps(assignment.valid),
        excluded=flat_maps(assignment.positives) if exclude_positives else None,
    )
    return level_maps(weights, assignment.labels)


@REGION_REGISTRY.register()
def inside_box(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    exclude_positives: bool = False,
    weighting: str = "mask",
) -> list[Tensor]:
    """
    :func:`inside_box_region` of each image; ``exclude_positives`` leaves out the positives. ``weighting`` is "mask" or
    "student_score", the source's largest class score.
    """
    check_bool("exclude_positives", exclude_positives)
    check_choice("weighting", weighting, ("mask", "student_score"))
    anchors, valid, positives = flat_anchors(source), flat_maps(assignment.valid), flat_maps(assignment.positives)
    rows = [
        inside_box_region(
            torch.cat(anchors), boxes, valid=valid[n], excluded=positives[n] if exclude_positives else None
        )
        for n, boxes in enumerate(assignment.gt_boxes)
    ]
    if weighting == "student_score":
        scores = flat_maps([max_score(x.detach(), source.class_dim) for x in source.logits])
        rows = [row * score for row, score in zip(rows, scores)]
    return level_maps(torch.stack(rows), assignment.labels)


@REGION_REGISTRY.register()
def fine_grained(
    source: DenseOutput, teacher: DenseOutput, assignment: Assignment, *, threshold: float = 0.5
) -> list[Tensor]:
    """:func:`fine_grained_region` of each image."""
    anchors, valid = torch.cat(flat_anchors(source)), flat_maps(assignment.valid)
    rows = [
        fine_grained_region(anchors, boxes, threshold=threshold, valid=valid[n])
        for n, boxes in enumerate(assignment.gt_boxes)
    ]
    return level_maps(torch.stack(rows), assignment.labels)
