"""The data that walks from detectors to losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Assignment", "DenseOutput", "OutputSpec"]


@dataclass(frozen=True)
class OutputSpec:
    """
    What is known of a detector's dense output before it runs.

    Attributes:
        family: name of the detector family.
        num_classes: K.
        bins: n + 1, the bins of each side's distribution; None for a head that predicts box deltas.
        centerness: whether it predicts centerness.
        feature_channels: channels of the maps that the head is given.
        box_coding: what turns box parameters into boxes, in words.
    """

    family: str
    num_classes: int
    bins: int | None
    centerness: bool
    feature_channels: int
    box_coding: str = ""


@dataclass
class DenseOutput:
    """
    What a detector said about every location of a batch, level by level.

    Maps keep the head's memory layout, so every K-channel map here is a view of what the head returned.

    Attributes:
        logits: per level, class logits of shape (N, A, K, H, W); the class axis is :attr:`class_dim`.
        box_params: per level, box parameters in the head's own coding: (N, A, 4, H, W) deltas, or
            (N, A, 4, n+1, H, W) logits of a distribution for each of left, top, right, bottom.
        anchors: per level, (A, H, W, 4) boxes in absolute xyxy pixels of the canvas.
        decode: turns (box_params, anchors, level) of one level into boxes, (N, A, H, W, 4) absolute xyxy, fp32.
        centerness: per level, centerness logits of shape (N, A, H, W); None for detectors without.
        features: per level, the maps that the head was given, (N, C, H, W); None for a crossed output.
        rectified: whether ``box_params`` are distances that decoding sends through a ReLU.
    """

    logits: list[Tensor]
    box_params: list[Tensor]
    anchors: list[Tensor]
    decode: Callable[[Tensor, Tensor, int], Tensor]
    centerness: list[Tensor] | None = None
    features: list[Tensor] | None = None
    rectified: bool = False

    class_dim = 2

    @cached_property
    def boxes(self) -> list[Tensor]:
        """Per level, decoded boxes of shape (N, A, H, W, 4), absolute xyxy, fp32; made on first use."""
        levels = zip(self.box_params, self.anchors, strict=True)
        with torch.enable_grad():  # a region, which needs no graph, may be the first to ask
            return [self.decode(params, anchors, level) for level, (params, anchors) in enumerate(levels)]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each level."""
        return [tuple(x.shape[-2:]) for x in self.logits]

    def crop(self, sizes: Sequence[tuple[int, int]]) -> DenseOutput:
        """The top-left ``sizes[level] = (H, W)`` of every map, as views."""

        def crop_maps(maps: list[Tensor]) -> list[Tensor]:
            return [x[..., :h, :w] for x, (h, w) in zip(maps, sizes)]

        return replace(
            self,
            logits=crop_maps(self.logits),
            box_params=crop_maps(self.box_params),
            anchors=[x[:, :h, :w] for x, (h, w) in zip(self.anchors, sizes)],
            centerness=None if self.centerness is None else crop_maps(self.centerness),
            features=None if self.features is None else crop_maps(self.features),
        )

    def select(self, levels: Sequence[int]) -> DenseOutput:
        """Of all maps those of ``levels``, in that order."""
        levels = list(levels)
        if levels == list(range(len(self.logits))):
            return self

        def pick(maps: list[Tensor]) -> list[Tensor]:
            return [maps[level] for level in levels]

        return replace(
            self,
            logits=pick(self.logits),
            box_params=pick(self.box_params),
            anchors=pick(self.anchors),
            # A detector's decoding may differ from level to level: it goes by the detector's own numbers.
            decode=lambda params, anchors, index: self.decode(params, anchors, levels[index]),
            centerness=None if self.centerness is None else pick(self.centerness),
            features=None if self.features is None else pick(self.features),
        )

    def with_classes(self, classes: Sequence[int] | None) -> DenseOutput:
        """The same with class logits of ``classes`` alone, in that order; None: all. Consecutive classes are views."""
        if classes is None:
            return self
        first, last = classes[0], classes[-1]
        if list(classes) == list(range(first, last + 1)):
            logits = [x.narrow(self.class_dim, first, len(classes)) for x in self.logits]
        else:
            index = torch.tensor(classes, device=self.logits[0].device)
            logits = [x.index_select(self.class_dim, index) for x in self.logits]
        return replace(self, logits=logits)


@dataclass
class Assignment:
    """
    The labels of this step for one anchor layout.

    Attributes:
        labels: per level, (N, A, H, W) integers: -1 = ignored, 0..K-1 = class, K = background, which is all of an image
            without labels.
        valid: per level, (N, A, H, W) booleans: False where an anchor lies in padding that the detector leaves out.
        gt_boxes: (G, 4) boxes of each image's objects, absolute xyxy pixels of the canvas.
        gt_classes: (G,) their classes.
        num_classes: K.
        matched_boxes: per level, (N, A, H, W, 4): the box of the object that a location answers for; meaningful at
            positives.
        num_labelled: how many of the N images have labels; they come first.
        iou_thresholds: (negative, positive), the IoUs with an object below and from which the detector's own matcher
            labels anchors; None for detectors that label otherwise.
    """

    labels: list[Tensor]
    valid: list[Tensor]
    gt_boxes: list[Tensor]
    gt_classes: list[Tensor]
    num_classes: int
    matched_boxes: list[Tensor]
    num_labelled: int
    iou_thresholds: tuple[float, float] | None = None

    @classmethod
    def from_flat(
        cls,
        labels: Tensor,
        num_classes: int,
        sizes: Sequence[tuple[int, int]],
        *,
        matched_boxes: Tensor,
        gt_boxes: Sequence[Tensor],
        gt_classes: Sequence[Tensor],
        valid: Tensor,
        num_labelled: int | None = None,
        iou_thresholds: tuple[float, float] | None = None,
    ) -> Assignment:
        """
        Args:
            labels: (N, R), what ``label_anchors`` returns first: R runs over levels and, inside a level, over
                (H, W, A).
            num_classes: K.
            sizes: (H, W) of each level.
            matched_boxes: (N, R, 4), what it returns second.
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
            matched_boxes=split_levels(matched_boxes),
            num_labelled=len(labels) if num_labelled is None else num_labelled,
            iou_thresholds=iou_thresholds,
        )

    def select(self, levels: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Assignment:
        """Of the maps those of ``levels``, in that order, and of each the top-left ``sizes[i] = (H, W)``."""
        levels, sizes = list(levels), list(sizes)
        if levels == list(range(len(self.labels))) and sizes == [tuple(x.shape[2:]) for x in self.labels]:
            return self
        return replace(
            self,
            **{
                name: [getattr(self, name)[level][:, :, :h, :w] for level, (h, w) in zip(levels, sizes, strict=True)]
                for name in ("labels", "valid", "matched_boxes")
            },
        )

    def with_classes(self, classes: Sequence[int] | None) -> Assignment:
        """The same with ``classes`` numbered from 0 and the objects of all others left out; None: as it is."""
        if classes is None:
            return self
        # Index K is background, and index -1, the last, what is ignored.
        table = self.labels[0].new_full((self.num_classes + 2,), len(classes))
        table[list(classes)] = torch.arange(len(classes), device=table.device, dtype=table.dtype)
        table[-1] = -1
        renumbered = [table[x] for x in self.gt_classes]
        known = [x < len(classes) for x in renumbered]
        return replace(
            self,
            labels=[table[x] for x in self.labels],
            gt_boxes=[boxes[mask] for boxes, mask in zip(self.gt_boxes, known)],
            gt_classes=[x[mask] for x, mask in zip(renumbered, known)],
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
