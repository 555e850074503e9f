"""What a detector said about every location of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from d2kd.structures.devices import whole_numbers

__all__ = ["DenseOutput", "OutputSpec"]


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

    @classmethod
    def of_features(cls, features: list[Tensor]) -> DenseOutput:
        """One of features alone, whose head did not run: its other lists are empty."""
        return cls(
            logits=[], box_params=[], anchors=[], decode=lambda params, anchors, level: anchors, features=features
        )

    @cached_property
    def boxes(self) -> list[Tensor]:
        """Per level, decoded boxes of shape (N, A, H, W, 4), absolute xyxy, fp32; made on first use."""
        levels = zip(self.box_params, self.anchors, strict=True)
        with torch.enable_grad():  # a region, which needs no graph, may be the first to ask
            return [self.decode(params, anchors, level) for level, (params, anchors) in enumerate(levels)]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each level."""
        return [(x.shape[-2], x.shape[-1]) for x in self.logits]

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
            logits = [x.index_select(self.class_dim, whole_numbers(tuple(classes), x.device)) for x in self.logits]
        return replace(self, logits=logits)

    def merge_classes(self, groups: Sequence[Sequence[int]] | None) -> DenseOutput:
        """
        The same with one class for each of ``groups``, which are the ids of one class or of several; None: all classes,
        as they are. Where no group has several, as :meth:`with_classes`.

        The logit of several classes is the largest of theirs. Scores are sigmoids, one classifier a class, so an object
        of any of them is an object of the merged class, which is as sure as the surest of them; and this is the score
        that the detector itself would report of the box. The probability of "any of them" if they were independent, 1 -
        prod(1 - p), would add up the small scores that the background has of every class, and log-sum-exp is that of a
        softmax, which these detectors do not have.
        """
        if groups is None:
            return self
        first = self.with_classes([ids[0] for ids in groups])
        several = tuple(number for number, ids in enumerate(groups) if len(ids) > 1)
        if not several:
            return first
        dim = self.class_dim
        logits = []
        for x, one in zip(self.logits, first.logits, strict=True):
            ids = (whole_numbers(tuple(groups[number]), x.device) for number in several)
            largest = torch.stack([x.index_select(dim, of_one).amax(dim) for of_one in ids], dim)
            logits.append(one.index_copy(dim, whole_numbers(several, x.device), largest))
        return replace(self, logits=logits)
