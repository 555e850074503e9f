"""Arithmetic of xyxy boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["box_areas", "box_centers", "image_chunks", "intersection", "iou", "object_chunks", "squared_distance"]

# Anchors x objects looked at in one go on a CPU, whose cache holds 4 MiB a number in fp32; and how many times as many
# elsewhere, where each chunk costs its launches and 32 MiB a number are few.
MAX_PAIRS = 1 << 20
_ON_A_DEVICE = 8

# The least union of two boxes, so that boxes without area have an IoU of 0, not NaN.
_SMALLEST_UNION = 1e-6


def box_centers(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy boxes -> (..., 2) centres."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_areas(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy boxes -> (...) areas, 0 for boxes turned inside out."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return (x1 - x0).clamp_(min=0) * (y1 - y0).clamp_(min=0)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Between points of shapes (..., 2), broadcast; (...). Not ``cdist``, which takes the difference of squares."""
    (ax, ay), (bx, by) = a.unbind(-1), b.unbind(-1)
    return (ax - bx).square_().add_((ay - by).square_())


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Areas (...) that xyxy boxes of shapes (..., 4), broadcast, have in common."""
    # Coordinate by coordinate: several times as fast as on pairs of them.
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.unbind(-1), b.unbind(-1)
    width = torch.minimum(ax1, bx1).sub_(torch.maximum(ax0, bx0)).clamp_(min=0)
    return width.mul_(torch.minimum(ay1, by1).sub_(torch.maximum(ay0, by0)).clamp_(min=0))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """
    IoU (...) of xyxy boxes of shapes (..., 4), broadcast; 0 for boxes without area (for which torchvision's
    ``box_iou`` gives NaN).
    """
    common = intersection(a, b)
    return common / (box_areas(a) + box_areas(b) - common).clamp_(min=_SMALLEST_UNION)


def object_chunks(objects: Tensor, num_anchors: int) -> tuple[Tensor, ...]:
    """(G, ...) in chunks small enough that a chunk times ``num_anchors`` is at most :data:`MAX_PAIRS`, 8 times that on
    a device."""
    return objects.split(_chunk_size(num_anchors, objects.device))


def image_chunks(objects: Sequence[Tensor], num_anchors: int) -> Iterator[list[tuple[int, slice]]]:
    """
    The objects of several images, (G, ...) each, in the chunks of :func:`object_chunks`: of each chunk the images, and
    which of their objects, at least one, are in it.
    """
    size = _chunk_size(num_anchors, objects[0].device)
    chunk: list[tuple[int, slice]] = []
    room = size
    for image, of_image in enumerate(objects):
        first = 0
        while first < len(of_image):
            part = slice(first, min(first + room, len(of_image)))
            chunk.append((image, part))
            room -= part.stop - first
            first = part.stop
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _chunk_size(num_anchors: int, device: torch.device) -> int:
    pairs = MAX_PAIRS if device.type == "cpu" else MAX_PAIRS * _ON_A_DEVICE
    return max(1, pairs // max(1, num_anchors))
