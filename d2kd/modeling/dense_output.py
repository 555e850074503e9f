"""The data that walks from detectors to losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Assignment", "DenseOutput"]


@dataclass
class DenseOutput:
    """
    What a detector said about every location of a batch, level by level.

    Maps keep the head's memory layout, so every K-channel map here is a view of what the head returned.

    Attributes:
        logits: per level, class logits of shape (N, A, K, H, W); the class axis is :attr:`class_dim`.
        box_params: per level, box parameters in the head's own coding, (N, A, 4, H, W).
        anchors: per level, (A, H, W, 4) boxes in absolute xyxy pixels of the canvas.
        decode: turns one level's (box_params, anchors) into boxes, (N, A, H, W, 4) absolute xyxy, fp32.
        centerness: per level, centerness logits of shape (N, A, H, W); None for detectors without.
    """

    logits: list[Tensor]
    box_params: list[Tensor]
    anchors: list[Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    centerness: list[Tensor] | None = None

    class_dim = 2

    @cached_property
    def boxes(self) -> list[Tensor]:
        """Per level, decoded boxes of shape (N, A, H, W, 4), absolute xyxy, fp32; made on first use."""
        return [self.decode(params, anchors) for params, anchors in zip(self.box_params, self.anchors)]

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
        )


@dataclass
class Assignment:
    """
    The labels of this step for one anchor layout.

    Attributes:
        labels: per level, (N, A, H, W) integers: -1 = ignored, 0..K-1 = class, K = background.
        num_classes: K.
    """

    labels: list[Tensor]
    num_classes: int

    @classmethod
    def from_flat(cls, flat_labels: Sequence[Tensor], num_classes: int, sizes: Sequence[tuple[int, int]]) -> Assignment:
        """
        Args:
            flat_labels: what ``label_anchors`` returns: one (R,) tensor an image, R running over levels and,
                inside a level, over (H, W, A).
            num_classes: K.
            sizes: (H, W) of each level.

        Raises:
            ValueError: R is not a whole number of anchors per cell of ``sizes``.
        """
        labels = torch.stack(list(flat_labels))
        cells = sum(h * w for h, w in sizes)
        num_anchors, rest = divmod(labels.shape[1], cells)
        if rest:
            raise ValueError(
                f"label_anchors returned {labels.shape[1]} labels an image, expected a multiple of {cells}, the "
                f"number of cells of the levels {list(sizes)}: d2kd reads labels in (level, H, W, anchor) order."
            )
        per_level = labels.split([h * w * num_anchors for h, w in sizes], dim=1)
        return cls(
            labels=[x.unflatten(1, (h, w, num_anchors)).permute(0, 3, 1, 2) for x, (h, w) in zip(per_level, sizes)],
            num_classes=num_classes,
        )

    @cached_property
    def positives(self) -> list[Tensor]:
        """Per level, (N, A, H, W) booleans: the locations that carry an object's label."""
        return [(x >= 0) & (x != self.num_classes) for x in self.labels]

    @cached_property
    def num_positives(self) -> Tensor:
        """(N,) number of positive locations of each image."""
        return torch.stack([x.sum(dim=(1, 2, 3)) for x in self.positives]).sum(dim=0)
