"""Pieces of GFL's and ATSS's training losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from d2kd.losses.kernel import compute_dtype

__all__ = ["LevelLabels", "centerness_targets", "distribution_focal_loss", "mean_over_ranks"]


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """
    "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection" (NeurIPS
    2020): cross entropy with the two bins around the target, each weighted by its nearness,

        (i + 1 - y) CE(logits, i) + (y - i) CE(logits, i + 1),    i = floor(y).

    Args:
        logits: (..., n + 1) over bins 0 to n.
        targets: (...) distances in bins, clamped into [0, n - 0.1] as in the authors' code; detached.

    Returns:
        (...) in nats; float32, or float64 if an input is float64.
    """
    dtype = compute_dtype(logits, targets)
    targets = targets.detach().to(dtype).clamp(min=0, max=logits.shape[-1] - 1 - 0.1)
    left = targets.long()
    near_right = targets - left
    log_probs = F.log_softmax(logits.to(dtype), dim=-1)
    of_left, of_right = (log_probs.gather(-1, i[..., None]).squeeze(-1) for i in (left, left + 1))
    return -(of_left * (1 - near_right) + of_right * near_right)


def centerness_targets(anchors: Tensor, boxes: Tensor) -> Tensor:
    """
    "FCOS: Fully Convolutional One-Stage Object Detection" (ICCV 2019):
    sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), with the distances from the anchor's centre to the sides of
    the box. Detectron2's ``FCOS.compute_ctrness_targets`` needs an FCOS, and takes all anchors instead of the
    positives.

    Args:
        anchors: (P, 4) xyxy, whose centres lie inside their boxes.
        boxes: (P, 4) xyxy.

    Returns:
        (P,) in (0, 1].
    """
    left_top, right_bottom = Box2BoxTransformLinear(normalize_by_size=False).get_deltas(anchors, boxes).chunk(2, dim=1)
    ratios = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom)
    return ratios.prod(dim=1).sqrt()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes, each of which must call this."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / world_size


class LevelLabels:
    """
    The labels of a batch laid over the head's maps, so that losses read those maps as they are: what a positive
    location needs is gathered, and nothing with a class or bin axis is permuted.

    The batch's P positives stand level by level and, in a level, by image.

    Args:
        labels: what ``label_anchors`` returns: (R,) of each image, R over (level, H, W, A).
        maps: per level, any (N, A, ..., H, W), for their sizes.
        num_classes: K.

    Attributes:
        labelled: per level, (N, A, H, W) fp32, 0 where an anchor is left out (label -1), 1 elsewhere.
        classes: (P,) classes of the positives.
        per_level: number of positives of each level.
        per_image: (N,) number of positives of each image.
    """

    def __init__(self, labels: Sequence[Tensor], maps: Sequence[Tensor], num_classes: int) -> None:
        flat = torch.stack(list(labels))
        is_positive = (flat >= 0) & (flat < num_classes)
        self.per_image = is_positive.sum(dim=1)
        self._shapes = [(*x.shape[-2:], x.shape[1]) for x in maps]
        self.labelled = [x.permute(0, 3, 1, 2) for x in self._split((flat >= 0).float())]
        # image, row, column and anchor of each level's positives
        self._indices = [x.nonzero(as_tuple=True) for x in self._split(is_positive)]
        self.per_level = [len(index[0]) for index in self._indices]
        self.classes = self.gather_flat(flat)

    def _split(self, flat: Tensor) -> list[Tensor]:
        """(N, R, ...) -> per level (N, H, W, A, ...), views."""
        per_level = flat.split([h * w * a for h, w, a in self._shapes], dim=1)
        return [x.unflatten(1, shape) for x, shape in zip(per_level, self._shapes)]

    def gather_flat(self, flat: Tensor) -> Tensor:
        """(N, R, ...) -> its entries at the positives, (P, ...)."""
        return torch.cat([x[index] for x, index in zip(self._split(flat), self._indices)])

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Per level (N, A, ..., H, W) -> their entries at the positives, (P, ...)."""
        return torch.cat([x.movedim((-2, -1), (1, 2))[index] for x, index in zip(maps, self._indices)])

    def class_targets(self, logits: Sequence[Tensor], values: Tensor) -> list[Tensor]:
        """
        Targets of the classification loss: a value at each positive's class and 0 elsewhere.

        Args:
            logits: per level, (N, A, K, H, W).
            values: (P,).

        Returns:
            per level, of the logits' shape and memory layout, fp32 (or fp64).
        """
        targets = []
        parts = zip(logits, self._indices, self.classes.split(self.per_level), values.split(self.per_level))
        for x, (n, h, w, a), classes, level_values in parts:
            target = torch.zeros_like(x, dtype=compute_dtype(x))
            target[n, a, classes, h, w] = level_values.to(target)
            targets.append(target)
        return targets
