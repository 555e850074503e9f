"""TID's scores: how good both tasks' outputs are for the objects, location by location and cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from d2kd.regions.atss import adaptive_thresholds
from d2kd.regions.base import check_bool, check_choice, flat_anchors, flat_maps, option_error
from d2kd.structures import Assignment, DenseOutput, iou, object_chunks

REGION = "task_integration"
# Of detectors whose matcher has none: those of Detectron2's RetinaNet.
_IOU_THRESHOLDS = (0.4, 0.5)
# "atss": the negative threshold as a share of the positive one, which is the lower bound of LD's region.
_ATSS_SHARE = 0.25


@dataclass(frozen=True)
class ImportanceScore:
    """
    How good a location's two outputs are for the object that its box is nearest to; TID's dual-task importance.

    Attributes:
        score: "discrete", values of a table (Sr, Sc), or "continuous", IoU and probability themselves.
        alpha: "continuous" only: share of the localisation, probability^(1 - alpha) * IoU^alpha or, with "sum",
            (1 - alpha) * probability + alpha * IoU; in [0, 1].
        combine: "product", "sum", or "cls" and "reg" for one task alone.
        cls_mode: "score": the probability of the object's class counts; "hit": only whether that class is the
            location's best.
        iou_values: Sr of an IoU that reaches the positive threshold, of one between, and of one that does not exceed
            the negative one; falling, >= 0.
        cls_values: Sc of a hit whose probability reaches the upper threshold, of one that reaches the lower, and of
            all else.
        iou_thresholds: (negative, positive), or "matcher": those of the student's own matcher, (0.4, 0.5) if it has
            none, or "atss": positive is the IoU that ATSS asks of the object's anchors, negative a quarter of it.
        cls_thresholds: (lower, upper) probability.
        centerness: where a detector predicts it, its root mean with the probability, sqrt(p * c), stands for p.

    Raises:
        ValueError: an option out of its range.
    """

    score: str = "discrete"
    alpha: float = 0.5
    combine: str = "product"
    cls_mode: str = "score"
    iou_values: tuple[float, float, float] = (2.0, 1.5, 0.4)
    cls_values: tuple[float, float, float] = (2.0, 1.5, 0.4)
    iou_thresholds: str | tuple[float, float] = "matcher"
    cls_thresholds: tuple[float, float] = (0.05, 0.5)
    centerness: bool = False

    def __post_init__(self) -> None:
        check_choice(REGION, "score", self.score, ("discrete", "continuous"))
        check_range("alpha", self.alpha, 0, 1)
        check_choice(REGION, "combine", self.combine, ("product", "sum", "cls", "reg"))
        check_choice(REGION, "cls_mode", self.cls_mode, ("score", "hit"))
        for option in ("iou_values", "cls_values"):
            values = getattr(self, option)
            if not _is_rising(values, 3, math.inf, reverse=True) or not 0 < values[0] < math.inf:
                raise option_error(REGION, option, values, "three falling numbers >= 0, such as [2, 1.5, 0.4]")
        if self.iou_thresholds not in ("matcher", "atss") and not (
            _is_rising(self.iou_thresholds, 2, 1) and self.iou_thresholds[1] > 0
        ):
            expected = "matcher, atss, or IoUs [negative, positive] in [0, 1], rising"
            raise option_error(REGION, "iou_thresholds", self.iou_thresholds, expected)
        if not _is_rising(self.cls_thresholds, 2, 1):
            expected = "probabilities [lower, upper] in [0, 1], rising"
            raise option_error(REGION, "cls_thresholds", self.cls_thresholds, expected)
        check_bool(REGION, "centerness", self.centerness)

    @property
    def top(self) -> float:
        """The highest score there is."""
        if self.score == "continuous":
            return 1.0
        reg, cls = self.iou_values[0], self.cls_values[0]
        return {"product": reg * cls, "sum": reg + cls, "cls": cls, "reg": reg}[self.combine]

    @property
    def medium(self) -> float:
        """The score of a location that is medium in each task that counts; "continuous": half of the highest."""
        if self.score == "continuous":
            return 0.5
        reg, cls = self.iou_values[1], self.cls_values[1]
        return {"product": reg * cls, "sum": reg + cls, "cls": cls, "reg": reg}[self.combine]

    def localization(self, overlap: Tensor, negative: float | Tensor, positive: float | Tensor) -> Tensor:
        """Score of IoUs, with thresholds of the same shape or numbers; IoU 0 is the lowest whatever they are."""
        if self.score == "continuous":
            return overlap
        good, medium, poor = self.iou_values
        scores = torch.full_like(overlap, poor).masked_fill_(overlap > negative, medium)
        return scores.masked_fill_((overlap >= positive) & (overlap > 0), good)

    def classification(self, probability: Tensor, hit: Tensor) -> Tensor:
        """Score of the probability of the object's class, ``hit`` where no other class has a higher one."""
        good, medium, poor = (1.0, 1.0, 0.0) if self.score == "continuous" else self.cls_values
        if self.cls_mode == "hit":
            return torch.full_like(probability, poor).masked_fill_(hit, good)
        if self.score == "continuous":
            return probability
        lower, upper = self.cls_thresholds
        scores = torch.full_like(probability, poor).masked_fill_(hit & (probability >= lower), medium)
        return scores.masked_fill_(hit & (probability >= upper), good)

    def integrate(self, cls: Tensor, reg: Tensor) -> Tensor:
        """The two tasks' scores as one."""
        if self.combine in ("cls", "reg"):
            return cls if self.combine == "cls" else reg
        if self.score == "discrete":
            return cls * reg if self.combine == "product" else cls + reg
        if self.combine == "product":
            return cls ** (1 - self.alpha) * reg**self.alpha
        return (1 - self.alpha) * cls + self.alpha * reg


def check_range(option: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise option_error(REGION, option, value, f"a number in [{low:g}, {high:g}]")


def _is_rising(values: Any, count: int, most: float, reverse: bool = False) -> bool:
    if not isinstance(values, (tuple, list)) or len(values) != count:
        return False
    if any(isinstance(x, bool) or not isinstance(x, Real) for x in values):
        return False
    values = tuple(values)[:: -1 if reverse else 1]
    return all(low <= high for low, high in zip((0, *values), (*values, most)))


@torch.no_grad()
def nearest_object(boxes: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """
    The object that each box of one image has the largest IoU with, the first of equals.

    Goes through the objects in parts: no table of all pairs is kept.

    Args:
        boxes: (R, 4) xyxy.
        gt_boxes: (G, 4) xyxy objects.

    Returns:
        (R,) fp32 IoUs, 0 where a box meets no object; and (R,) int64 indices of the objects, -1 there.
    """
    # Column by column, objects first: all that is read for one object lies in a row.
    columns = boxes.float().t().contiguous().t()
    overlap = columns.new_zeros(len(columns))
    index = torch.full_like(overlap, -1, dtype=torch.int64)
    offset = 0
    for part in object_chunks(gt_boxes.float(), len(columns)):
        if not len(part):  # what no objects at all are split into
            break
        best, which = iou(columns, part[:, None]).max(0)
        better = best > overlap
        overlap = torch.where(better, best, overlap)
        index = torch.where(better, which + offset, index)
        offset += len(part)
    return overlap, index


@torch.no_grad()
def iou_thresholds_of(
    rule: ImportanceScore, source: DenseOutput, assignment: Assignment
) -> list[tuple[float, float] | tuple[Tensor, Tensor]]:
    """For each image the (negative, positive) IoUs of ``rule``: two numbers, or of each object, (G,)."""
    if rule.iou_thresholds == "atss":
        anchors, valid = flat_anchors(source), flat_maps(assignment.valid)
        positive = [adaptive_thresholds(anchors, boxes, valid=x) for boxes, x in zip(assignment.gt_boxes, valid)]
        return [(_ATSS_SHARE * x, x) if len(x) else _IOU_THRESHOLDS for x in positive]
    pair = rule.iou_thresholds
    if pair == "matcher":
        pair = assignment.iou_thresholds or _IOU_THRESHOLDS
    return [tuple(pair)] * len(assignment.gt_boxes)


@torch.no_grad()
def cell_scores(
    output: DenseOutput,
    assignment: Assignment,
    rule: ImportanceScore,
    thresholds: Sequence[tuple[float, float] | tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The scores of one detector on its feature cells: of each the highest of its anchors', where that of an anchor is
    what ``rule`` makes of its box and its class scores *together*. A location outside the assignment's valid ones
    scores 0. One whose box meets no object is about none: it has the lowest score of both tasks, whatever its class,
    as all have in an image without objects.

    Args:
        output: the detector's dense output, in the anchors of the assignment.
        assignment: read for the objects and the valid locations.
        rule: how boxes and class scores are valued.
        thresholds: of :func:`iou_thresholds_of`.

    Returns:
        (N, M) fp32 scores of the M cells of all levels, (H, W) after (H, W); and of the anchor that each is from, of
        equals the one of the largest IoU: the index of its object (N, M), -1 for none, and its IoU with it (N, M).
    """
    sizes = [x[0].numel() for x in assignment.valid]
    rows = []
    for n, (gt_boxes, gt_classes, pair) in enumerate(zip(assignment.gt_boxes, assignment.gt_classes, thresholds)):
        # In (A, H, W) order, which is that of the class maps: these are read where they lie.
        boxes = torch.cat([level[n].flatten(0, 2) for level in output.boxes])
        overlap, index = nearest_object(boxes, gt_boxes)
        of = index.clamp(min=0)
        negative, positive = (x[of] if isinstance(x, Tensor) else x for x in pair)
        classes = gt_classes[of] if len(gt_classes) else of
        rows.append((overlap, index, classes, rule.localization(overlap, negative, positive)))
    levels = zip(*(torch.stack(x).split(sizes, dim=1) for x in zip(*rows)))
    centerness = output.centerness if rule.centerness and output.centerness is not None else [None] * len(sizes)

    cells = []
    for logits, center, valid, flat in zip(output.logits, centerness, assignment.valid, levels):
        overlap, index, classes, reg = (x.view(valid.shape) for x in flat)
        own = logits.gather(output.class_dim, classes.unsqueeze(output.class_dim)).squeeze(output.class_dim)
        hit = (own == logits.amax(output.class_dim)) & (index >= 0)
        probability = own.float().sigmoid().masked_fill_(index < 0, 0)
        if center is not None:
            probability.mul_(center.float().sigmoid()).sqrt_()
        scores = rule.integrate(rule.classification(probability, hit), reg).masked_fill(~valid, 0)
        best = scores.amax(1, keepdim=True)
        overlap, anchor = overlap.masked_fill(scores < best, -1).max(1, keepdim=True)
        cells.append((best, index.gather(1, anchor), overlap))
    return tuple(torch.cat([x.flatten(1) for x in maps], dim=1) for maps in zip(*cells))
