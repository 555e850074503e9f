"""The labels of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from d2kd.structures.devices import whole_numbers

__all__ = ["Assignment"]


@dataclass
class Assignment:
    """
    The labels of this step for one set of anchors.

    Attributes:
        labels: per level, (N, A, H, W) integers: -1 = ignored, 0..K-1 = class, K = background, which is all of an image
            without labels.
        valid: per level, (N, A, H, W) booleans: False where an anchor lies in padding that the detector leaves out.
        gt_boxes: (G, 4) boxes of each image's objects, absolute xyxy pixels of the canvas.
        gt_classes: (G,) their classes.
        num_classes: K.
        num_labelled: how many of the N images have labels; they come first.
        iou_thresholds: (negative, positive), the IoUs with an object below and from which the detector's own matcher
            labels anchors; None for detectors that label otherwise.
    """

    labels: list[Tensor]
    valid: list[Tensor]
    gt_boxes: list[Tensor]
    gt_classes: list[Tensor]
    num_classes: int
    num_labelled: int
    iou_thresholds: tuple[float, float] | None = None

    @classmethod
    def from_flat(
        cls,
        labels: Tensor,
        num_classes: int,
        sizes: Sequence[tuple[int, int]],
        *,
        gt_boxes: Sequence[Tensor],
        gt_classes: Sequence[Tensor],
        valid: Tensor,
        num_labelled: int | None = None,
        iou_thresholds: tuple[float, float] | None = None,
    ) -> Assignment:
        """
        Args:
            labels: (N, R), what ``label_anchors`` returns: R runs over levels and, inside a level, over
                (H, W, A).
            num_classes: K.
            sizes: (H, W) of each level.
            gt_boxes: (G, 4) boxes of each image, absolute xyxy.
            gt_classes: (G,) classes of each image.
            valid: (N, R) booleans, ordered as the labels.
            num_labelled: see :class:`Assignment`; None: all images.
            iou_thresholds: see :class:`Assignment`.

        Raises:
            ValueError: R is not a whole number of anchors per cell of ``sizes``.
        """
        cells = sum(h * w for h, w in sizes)
        num_anchors, rest = divmod(labels.shape[1], cells)
        if rest:
            raise ValueError(
                f"label_anchors returned {labels.shape[1]} labels an image, expected a multiple of {cells}, the "
                f"number of cells of the levels {list(sizes)}: d2kd reads labels in (level, H, W, anchor) order."
            )

        def split_levels(flat: Tensor) -> list[Tensor]:
            per_level = flat.split([h * w * num_anchors for h, w in sizes], dim=1)
            return [x.unflatten(1, (h, w, num_anchors)).movedim(3, 1) for x, (h, w) in zip(per_level, sizes)]

        return cls(
            labels=split_levels(labels),
            valid=split_levels(valid),
            gt_boxes=list(gt_boxes),
            gt_classes=list(gt_classes),
            num_classes=num_classes,
            num_labelled=len(labels) if num_labelled is None else num_labelled,
            iou_thresholds=iou_thresholds,
        )

    def select(self, levels: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Assignment:
        """Of the maps those of ``levels``, in that order, and of each the top-left ``sizes[i] = (H, W)``."""
        levels, sizes = list(levels), list(sizes)
        if levels == list(range(len(self.labels))) and sizes == [tuple(x.shape[2:]) for x in self.labels]:
            return self

        def crop(maps: list[Tensor]) -> list[Tensor]:
            return [maps[level][:, :, :h, :w] for level, (h, w) in zip(levels, sizes, strict=True)]

        return replace(self, labels=crop(self.labels), valid=crop(self.valid))

    def with_classes(self, classes: Sequence[int] | None, objects: Sequence[Tensor] | None = None) -> Assignment:
        """
        The same with ``classes`` numbered from 0.

        Args:
            classes: ids; None: all, as they are.
            objects: of each image, indices of the objects of these classes: the others are left out. None: there are
                no others.
        """
        if classes is None:
            return self
        # Index K is background, and index -1, the last, what is ignored.
        numbers = [len(classes)] * (self.num_classes + 1) + [-1]
        for number, id_ in enumerate(classes):
            numbers[id_] = number
        table = whole_numbers(tuple(numbers), self.labels[0].device)
        gt_boxes, gt_classes = self.gt_boxes, self.gt_classes
        if objects is not None:
            gt_boxes, gt_classes = ([x[kept] for x, kept in zip(of, objects)] for of in (gt_boxes, gt_classes))
        return replace(
            self,
            labels=[table[x] for x in self.labels],
            gt_boxes=gt_boxes,
            gt_classes=[table[x] for x in gt_classes],
            num_classes=len(classes),
        )

    @cached_property
    def positives(self) -> list[Tensor]:
        """Per level, (N, A, H, W) booleans: the locations that carry an object's label."""
        return [(x >= 0) & (x != self.num_classes) for x in self.labels]

    @cached_property
    def num_positives(self) -> Tensor:
        """(N,) number of positive locations of each image."""
        return torch.stack([x.sum(dim=(1, 2, 3)) for x in self.positives]).sum(dim=0)
