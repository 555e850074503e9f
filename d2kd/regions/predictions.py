"""A region made of what student and teacher predict, boxes included."""

from __future__ import annotations

import torch
from torch import Tensor

from d2kd.regions.base import REGION_REGISTRY, check_fraction, check_option, label_free
from d2kd.structures import Assignment, DenseOutput, iou


@torch.no_grad()
def general_instance_region(
    source_logits: Tensor,
    teacher_logits: Tensor,
    source_boxes: Tensor,
    teacher_boxes: Tensor,
    *,
    topk: int = 10,
    nms_threshold: float = 0.3,
    valid: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """
    General instances of "General Instance Distillation for Object Detection" (CVPR 2021, arXiv:2103.02340): the
    locations on which student and teacher disagree most, far enough from one another.

    A location's score is max_k |sigma(t_k) - sigma(z_k)|; its box is that of the one who gives the class of the
    largest difference the higher score, the student's where both give the same. Of these the ``topk`` of highest
    score that class-agnostic non-maximum suppression leaves. On each image by itself; LD's code mixes the images of a
    batch.

        >>> student, teacher = torch.zeros(1, 3, 1), torch.tensor([[[3.0], [2], [1]]])
        >>> boxes = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]]])  # the first two overlap
        >>> general_instance_region(student, teacher, boxes, boxes)
        tensor([[1., 0., 1.]])

    Args:
        source_logits, teacher_logits: (N, R) and the class axis ``dim``.
        source_boxes, teacher_boxes: (N, R, 4) decoded boxes.
        topk: locations of an image, at least 1; fewer where suppression leaves fewer.
        nms_threshold: IoU above which the box of lower score is suppressed, in [0, 1).
        valid: (N, R) booleans.

    Returns:
        (N, R) weights, 1 or 0.
    """
    is_count = isinstance(topk, int) and not isinstance(topk, bool) and topk >= 1
    check_option("topk", topk, is_count, "a whole number of at least 1")
    check_fraction("nms_threshold", nms_threshold)
    gap = teacher_logits.float().sigmoid() - source_logits.float().sigmoid()
    scores, classes = gap.abs().max(dim)
    teacher_leads = gap.gather(dim, classes.unsqueeze(dim)).squeeze(dim) > 0
    boxes = torch.where(teacher_leads[..., None], teacher_boxes.float(), source_boxes.float())
    if valid is not None:
        scores = scores.masked_fill(~valid, -1)

    # Greedy suppression, the best of each image at a time: topk rounds give what a full run begins with, without its
    # table of pairs (on a RetinaNet's finest level, of 1e5 locations squared).
    region = torch.zeros_like(scores)
    for _ in range(min(topk, scores.shape[1])):
        best, index = scores.max(1, keepdim=True)
        region.scatter_reduce_(1, index, (best >= 0).float(), "amax")
        suppressed = iou(boxes, boxes.gather(1, index[..., None].expand(-1, -1, 4))) > nms_threshold
        scores = scores.masked_fill(suppressed, -1).scatter_(1, index, -1)
    return region


@REGION_REGISTRY.register()
@label_free
def general_instances(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    topk: int = 10,
    nms_threshold: float = 0.3,
) -> list[Tensor]:
    """:func:`general_instance_region` of each image and level: ``topk`` locations each."""
    regions = []
    for level, valid in enumerate(assignment.valid):
        # (N, A, K, H, W) -> (N, K, A * H * W), which for one anchor a cell is a view
        ours, theirs = (x.logits[level].movedim(x.class_dim, 1).flatten(2) for x in (source, teacher))
        region = general_instance_region(
            ours,
            theirs,
            source.boxes[level].flatten(1, 3),
            teacher.boxes[level].flatten(1, 3),
            topk=topk,
            nms_threshold=nms_threshold,
            valid=valid.flatten(1),
            dim=1,
        )
        regions.append(region.view(valid.shape))
    return regions
