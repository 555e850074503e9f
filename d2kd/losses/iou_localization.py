"""IoU-based localization distillation: the box term of BCKD, and of CrossKD on box-predicting heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss

if TYPE_CHECKING:
    from d2kd.modeling.dense_output import DenseOutput

__all__ = ["IoULocalizationKD", "iou_localization_kd"]

_IOU_TYPES = ("giou", "iou", "neg_log_iou")


def iou_localization_kd(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    *,
    iou_type: str = "giou",
    weight: Tensor | None = None,
    reduction: str = "none",
    eps: float = 1e-6,
) -> Tensor:
    """
    IoU loss between the boxes that student and teacher decode at the same location.

    * "giou": 1 - GIoU, in [0, 2] for valid boxes;
    * "iou": 1 - IoU;
    * "neg_log_iou": -ln(IoU), at most -ln(eps) = 13.8, with zero gradient once boxes are disjoint.

    The papers' terms, without their normalisers:

    * L_loc of "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection"
      (BCKD, ICCV 2023): sum_i max_k(w_ik) (1 - IoU_i), with max_k(w_ik) passed as ``weight``. The text
      writes IoU; the authors' code, behind their results, uses GIoU, and detaches the weight;
    * L_reg of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
      2306.11369), with the student's boxes decoded from the crossed output. From the authors' code: GIoU
      for RetinaNet and ATSS, -ln(IoU) for FCOS, and the teacher's highest class probability as
      ``weight``, where the text weighs every location with 1.

    The clamps are those of both codes: union and enclosing area from below at ``eps``; IoU, in "iou" and
    "neg_log_iou" only, from below at ``eps`` (so disjoint boxes give 1 - eps). fvcore's ``giou_loss``
    differs: it adds its eps to the areas and asserts x2 >= x1.

    One departure from both codes: a location whose student box equals the teacher's counts as IoU = 1,
    loss and gradient exactly zero. It matters for boxes without area, for which the formula finds no
    overlap and the loss of disjoint boxes; FCOS decodes through a ReLU and makes such boxes. Unequal
    boxes without area, or with x2 < x1, follow the formula and stay finite. A non-finite coordinate
    makes the location's loss non-finite.

    The teacher is detached. Computed in float32 whatever the input dtype or autocast (float64 stays
    float64): areas of a large image overflow float16.

    Args:
        student_boxes: (..., 4), xyxy, absolute pixels (or any unit that the teacher's boxes share).
        teacher_boxes: same shape.
        iou_type: "giou", "iou" or "neg_log_iou".
        weight: a factor per location, of the boxes' shape without the last axis; detached.
        reduction: "none" or "sum".
        eps: lower clamp of the areas (squared unit of the boxes) and of IoU, > 0.

    Returns:
        Per location (the boxes' shape without the last axis) for "none", a scalar for "sum". float32, or
        float64 if an input is float64.

    Raises:
        ValueError: shapes that differ or do not end in 4, a non-floating dtype, an unknown ``iou_type`` or
            ``reduction``, ``eps`` <= 0, a ``weight`` of another shape or one that requires grad.
    """
    _check_inputs(student_boxes, teacher_boxes, iou_type, weight, reduction, eps)
    dtype = torch.promote_types(torch.promote_types(student_boxes.dtype, teacher_boxes.dtype), torch.float32)
    student = student_boxes.to(dtype)
    teacher = teacher_boxes.detach().to(dtype)

    s_top_left, s_bottom_right = student[..., :2], student[..., 2:]
    t_top_left, t_bottom_right = teacher[..., :2], teacher[..., 2:]
    sides = torch.min(s_bottom_right, t_bottom_right) - torch.max(s_top_left, t_top_left)
    overlap = _area(sides.clamp(min=0))
    union = _area(s_bottom_right - s_top_left) + _area(t_bottom_right - t_top_left) - overlap
    union = union.clamp(min=eps)
    iou = overlap / union
    if iou_type == "giou":
        sides = torch.max(s_bottom_right, t_bottom_right) - torch.min(s_top_left, t_top_left)
        enclosure = _area(sides.clamp(min=0)).clamp(min=eps)
        loss = 1 - (iou - (enclosure - union) / enclosure)
    elif iou_type == "iou":
        loss = 1 - iou.clamp(min=eps)
    else:
        loss = -iou.clamp(min=eps).log()

    loss = torch.where((student == teacher).all(dim=-1), torch.zeros_like(loss), loss)
    # The clamps and the line above would hide an infinite coordinate (a negative infinite area becomes
    # eps): zero times the coordinates adds nothing to a finite location and NaN to any other.
    loss = loss + (student * 0 + teacher * 0).sum(dim=-1)
    if weight is not None:
        loss = loss * weight.to(dtype)
    return loss.sum() if reduction == "sum" else loss


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def _check_inputs(
    student: Tensor, teacher: Tensor, iou_type: str, weight: Tensor | None, reduction: str, eps: float
) -> None:
    if student.shape != teacher.shape or student.dim() == 0 or student.shape[-1] != 4:
        raise ValueError(
            "iou_localization_kd: student_boxes and teacher_boxes must have the same shape (..., 4), found "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    for name, boxes in (("student_boxes", student), ("teacher_boxes", teacher)):
        if not boxes.is_floating_point():
            raise ValueError(f"iou_localization_kd: {name} must be floating point, found {boxes.dtype}")
    if iou_type not in _IOU_TYPES:
        raise ValueError(f"iou_localization_kd: iou_type must be one of {_IOU_TYPES}, found {iou_type!r}")
    if reduction not in ("none", "sum"):
        raise ValueError(f'iou_localization_kd: reduction must be "none" or "sum", found {reduction!r}')
    if not eps > 0:
        raise ValueError(f"iou_localization_kd: eps must be > 0, found {eps}")
    if weight is not None:
        if weight.shape != student.shape[:-1]:
            raise ValueError(
                "iou_localization_kd: weight must have the boxes' shape without the last axis, "
                f"expected {tuple(student.shape[:-1])}, found {tuple(weight.shape)}"
            )
        if weight.requires_grad:
            raise ValueError("iou_localization_kd: weight must not require grad, pass weight.detach()")


@LOSS_REGISTRY.register()
class IoULocalizationKD(DistillationLoss):
    """
    :func:`iou_localization_kd` over the decoded boxes of dense outputs: BCKD's localisation term with
    ``source="student", region="gap"``, CrossKD's on box heads with ``source="crossed", region="teacher_quality"``.

    Args:
        iou_type: "giou", "iou" or "neg_log_iou".
        kwargs: see :class:`DistillationLoss`.
    """

    task = "box"

    def __init__(self, *, iou_type: str = "giou", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if iou_type not in _IOU_TYPES:
            raise ValueError(f"IoULocalizationKD.iou_type is {iou_type!r}, expected one of {', '.join(_IOU_TYPES)}.")
        self.iou_type = iou_type

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        return iou_localization_kd(
            source.boxes[level], teacher.boxes[level], iou_type=self.iou_type, weight=region, reduction="sum"
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, iou_type={self.iou_type}"
