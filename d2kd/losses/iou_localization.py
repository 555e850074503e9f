"""IoU-based localization distillation: the box term of BCKD, and of CrossKD on box-predicting heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_choice, check_inputs, compute_dtype, weigh_and_reduce
from d2kd.losses.one_pass import KnownGradient
from d2kd.structures import DenseOutput

__all__ = ["IoULocalizationKD", "iou_localization_kd", "iou_loss"]

_IOU_TYPES = ("giou", "iou", "neg_log_iou")

#: Lower clamp of areas, in the squared unit of the boxes, and of IoU.
_EPS = 1e-6


def iou_localization_kd(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    *,
    iou_type: str = "giou",
    weight: Tensor | None = None,
    reduction: str = "none",
) -> Tensor:
    """
    IoU loss between the boxes that student and teacher decode at the same location.

    * "giou": 1 - GIoU, in [0, 2] for valid boxes;
    * "iou": 1 - IoU;
    * "neg_log_iou": -ln(IoU), at most -ln(1e-6) = 13.8, with zero gradient once boxes are disjoint.

    The papers' terms, without their normalisers:

    * L_loc of "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection"
      (BCKD, ICCV 2023): sum_i max_k(w_ik) (1 - IoU_i), with max_k(w_ik) passed as ``weight``. The text
      writes IoU; the authors' code, behind their results, uses GIoU, and detaches the weight;
    * L_reg of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
      2306.11369), with the student's boxes decoded from the crossed output. From the authors' code: GIoU
      for RetinaNet and ATSS, -ln(IoU) for FCOS, and the teacher's highest class probability as
      ``weight``, where the text weighs every location with 1.

    The clamps are those of both codes: union and enclosing area from below at 1e-6; IoU, in "iou" and
    "neg_log_iou" only, from below at 1e-6 (so disjoint boxes give 1 - 1e-6). fvcore's ``giou_loss``
    differs: it adds its eps to the areas and asserts x2 >= x1.

    One departure from both codes: a location whose student box equals the teacher's counts as IoU = 1,
    loss and gradient exactly zero. It matters for boxes without area, for which the formula finds no
    overlap and the loss of disjoint boxes; FCOS decodes through a ReLU and makes such boxes. Unequal
    boxes without area, or with x2 < x1, follow the formula and stay finite.

    Args:
        student_boxes: (..., 4), xyxy, absolute pixels (or any unit that the teacher's boxes share).
        teacher_boxes: same shape.
        iou_type: "giou", "iou" or "neg_log_iou".
        weight, reduction: see :mod:`d2kd.losses`; a location is a box.

    Returns:
        The loss, without unit: the boxes' shape without the last axis, or summed.

    Raises:
        ValueError: see :mod:`d2kd.losses`; boxes whose last axis is not 4, an unknown ``iou_type``.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4]]), torch.tensor([[0.0, 0, 4, 4]] * 2)
        >>> iou_localization_kd(student, teacher, iou_type="iou")
        tensor([0.0000, 0.6667])
    """
    _check("iou_localization_kd", iou_type, student_boxes=student_boxes, teacher_boxes=teacher_boxes)
    dtype = compute_dtype(student_boxes, teacher_boxes)
    boxes, targets = student_boxes.to(dtype), teacher_boxes.to(dtype)
    needs_gradient = torch.is_grad_enabled() and boxes.requires_grad
    loss, gradient = _loss_and_gradient(boxes, targets, iou_type, needs_gradient)
    if gradient is not None:
        loss = KnownGradient.apply(boxes, loss, gradient, -1)
    return weigh_and_reduce("iou_localization_kd", loss, weight, reduction)


def iou_loss(boxes: Tensor, targets: Tensor, *, iou_type: str = "giou") -> Tensor:
    """
    IoU loss of each box with its target: the formula of :func:`iou_localization_kd`, whose docstring says what
    it does with areas and equal boxes. As a detection loss ("giou") it is that of GFL and ATSS: "Generalized
    Intersection over Union" (CVPR 2019), areas clamped at 1e-6.

    The targets are not detached: gradient flows into them too if they require it.

    Args:
        boxes: (..., 4), xyxy, in any unit that the targets share.
        targets: same shape.
        iou_type: "giou", "iou" or "neg_log_iou".

    Returns:
        One value per box, the boxes' shape without the last axis.

    Raises:
        ValueError: as :func:`iou_localization_kd`.

    Example:
        >>> boxes, targets = torch.tensor([[0.0, 0, 4, 4], [0, 0, 1, 1]]), torch.tensor([[0.0, 0, 4, 4], [2, 0, 3, 1]])
        >>> iou_loss(boxes, targets)
        tensor([0.0000, 1.3333])
    """
    _check("iou_loss", iou_type, boxes=boxes, targets=targets)
    dtype = compute_dtype(boxes, targets)
    boxes, targets = boxes.to(dtype), targets.to(dtype)

    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    t_top_left, t_bottom_right = targets[..., :2], targets[..., 2:]
    sides = torch.min(bottom_right, t_bottom_right) - torch.max(top_left, t_top_left)
    overlap = _area(sides.relu())  # its slope at 0, where boxes touch, is 0; that of clamp depends on torch's version
    union = _area(bottom_right - top_left) + _area(t_bottom_right - t_top_left) - overlap
    union = union.clamp(min=_EPS)
    iou = overlap / union
    if iou_type == "giou":
        sides = torch.max(bottom_right, t_bottom_right) - torch.min(top_left, t_top_left)
        enclosure = _area(sides.relu()).clamp(min=_EPS)
        loss = 1 - (iou - (enclosure - union) / enclosure)
    elif iou_type == "iou":
        loss = 1 - iou.clamp(min=_EPS)
    else:
        loss = -iou.clamp(min=_EPS).log()

    loss = torch.where((boxes == targets).all(dim=-1), torch.zeros_like(loss), loss)
    # The clamps and the line above would hide an infinite coordinate (a negative infinite area becomes
    # 1e-6): zero times the coordinates adds nothing to a finite location and NaN to any other.
    return loss + (boxes * 0 + targets * 0).sum(dim=-1)


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def _check(caller: str, iou_type: str, **pair: Tensor) -> None:
    check_inputs(caller, -1, **pair)
    shape = tuple(next(iter(pair.values())).shape)
    if shape[-1] != 4:
        raise ValueError(f"{caller}: {' and '.join(pair)} must be (..., 4), found {shape}")
    if iou_type not in _IOU_TYPES:
        raise ValueError(f"{caller}: iou_type must be one of {', '.join(_IOU_TYPES)}, found {iou_type!r}")


@torch.no_grad()
def _loss_and_gradient(
    boxes: Tensor, targets: Tensor, iou_type: str, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """
    :func:`iou_loss` and its gradient into the boxes, which shares most of it.

    It works on pairs of x and y: fastest where the boxes' storage has one coordinate after the other.
    """
    (low, high), (t_low, t_high) = _corners(boxes), _corners(targets)
    sides, t_sides = high - low, t_high - t_low
    inner = torch.min(high, t_high).sub_(torch.max(low, t_low))
    overlap_sides = inner.clamp(min=0)
    overlap = overlap_sides[0] * overlap_sides[1]
    union = (sides[0] * sides[1]).add_(t_sides[0] * t_sides[1]).sub_(overlap)
    union_passes = _above(union, _EPS)
    union.clamp_(min=_EPS)
    iou = overlap.div_(union)

    # The derivatives by overlap, union and enclosure, each as if it changed alone.
    by_overlap = union.reciprocal().neg_()
    if iou_type == "giou":
        outer = torch.max(high, t_high).sub_(torch.min(low, t_low))
        enclosure_sides = outer.clamp(min=0)
        enclosure = enclosure_sides[0] * enclosure_sides[1]
        by_enclosure = _above(enclosure, _EPS)
        enclosure.clamp_(min=_EPS)
        loss = 1 - (iou - (enclosure - union).div_(enclosure))
        by_enclosure.mul_(union).div_(enclosure).div_(enclosure)
        by_union = (iou * by_overlap).add_(enclosure.reciprocal_()).neg_()
    else:
        by_overlap.mul_(_above(iou, _EPS))
        clamped = iou.clamp(min=_EPS)
        loss = 1 - clamped
        if iou_type == "neg_log_iou":
            by_overlap.div_(clamped)
            loss = clamped.log_().neg_()
        by_union = (iou * by_overlap).neg_()
    by_overlap.sub_(by_union.mul_(union_passes))

    equal = (low == t_low).logical_and_(high == t_high).all(dim=0)
    loss.masked_fill_(equal, 0)
    loss.add_((sides + t_sides).sum(dim=0).mul_(0))  # as in iou_loss
    if not needs_gradient:
        return loss, None

    grad = torch.empty_like(boxes)
    grad_low, grad_high = _corners(grad)
    of_inner = overlap_sides.flip(0).mul_(by_overlap.masked_fill_(equal, 0)).mul_(_above(inner, 0))
    of_outer = torch.zeros_like(of_inner)
    if iou_type == "giou":
        of_outer = enclosure_sides.flip(0).mul_(by_enclosure.masked_fill_(equal, 0)).mul_(_above(outer, 0))
    of_sides = sides.flip(0).mul_(by_union.masked_fill_(equal, 0))
    torch.lerp(of_outer, of_inner, _below(high, t_high), out=grad_high).add_(of_sides)
    torch.lerp(of_inner, of_outer, _below(low, t_low), out=grad_low).add_(of_sides).neg_()
    return loss, grad


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) -> (2, ...) of the upper left corners, x and y, and of the lower right."""
    planes = boxes.movedim(-1, 0)
    return planes[:2], planes[2:]


def _above(x: Tensor, bound: float) -> Tensor:
    """1 where ``x`` > ``bound``, else 0: the slope of ``x.clamp(min=bound)``."""
    # As floats at once: to multiply by booleans, or to choose by them, takes several times as long on a CPU.
    return torch.gt(x, bound, out=torch.empty_like(x))


def _below(x: Tensor, y: Tensor) -> Tensor:
    """1 where x < y, 0 where x > y, 1/2 where they are equal: the slope of ``torch.min(x, y)`` in x."""
    return (y - x).sign_().add_(1).div_(2)


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
        check_choice(type(self).__name__, "iou_type", iou_type, _IOU_TYPES)
        self.iou_type = iou_type

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        return iou_localization_kd(
            source.boxes[level], teacher.boxes[level], iou_type=self.iou_type, weight=region, reduction="sum"
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, iou_type={self.iou_type}"
