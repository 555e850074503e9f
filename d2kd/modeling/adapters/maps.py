"""A head's raw maps: what they must be, and the views and boxes that a dense output is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes
from torch import Tensor

from d2kd.modeling.detectors import DistributionBoxes, expected_distances
from d2kd.modeling.detectors.interface import box_transform_of, strides_of

__all__ = ["check_lists", "check_maps", "decode", "view_anchors", "view_boxes"]


def check_lists(detector: DenseDetector, predictions: object) -> None:
    """
    Raises:
        TypeError: ``predictions`` are no lists of maps.
    """
    if not isinstance(predictions, (list, tuple)):
        raise TypeError(
            f"{type(detector.head).__name__}.forward returned a {type(predictions).__name__}, expected lists of "
            "per-level maps, one list a kind of prediction: return a tuple of them."
        )


def check_maps(
    detector: DenseDetector,
    predictions: Sequence[Sequence[Tensor]],
    anchors: Sequence[Boxes],
    channels: Mapping[str, int],
) -> None:
    """
    Args:
        predictions: what ``head.forward`` returned.
        anchors: of each level.
        channels: for each of the first lists, what it holds and its channels for one anchor.

    Raises:
        TypeError: other maps than these.
    """
    check_lists(detector, predictions)
    head, family = type(detector.head).__name__, type(detector).__name__
    remedy = f"register an Adapter for {family} whose dense_output() reads them (docs/own_detector.md)."
    if len(predictions) < len(channels):
        raise TypeError(
            f"{head}.forward returned {len(predictions)} lists of maps, expected {len(channels)} ("
            f"{', '.join(channels)}): {remedy}"
        )
    for (kind, per_anchor), maps in zip(channels.items(), predictions):
        if not isinstance(maps, (list, tuple)) or len(maps) != len(anchors):
            found = f"{len(maps)} maps" if isinstance(maps, (list, tuple)) else f"a {type(maps).__name__}"
            raise TypeError(
                f"{head}.forward returned {found} where d2kd looks for {kind}, expected a list of {len(anchors)}, one "
                f"a level: {remedy}"
            )
        for level, (x, boxes) in enumerate(zip(maps, anchors)):
            # Per anchor and cell, so that a map of another size is found as well.
            if x.dim() != 4 or x.shape[1] * x.shape[2] * x.shape[3] != len(boxes) * per_anchor:
                raise TypeError(
                    f"{head}.forward returned a map of shape {tuple(x.shape)} where d2kd looks for {kind} of level "
                    f"{level}, expected (N, A*{per_anchor}, H, W) for its {len(boxes)} anchors: {remedy}"
                )


def view_anchors(anchors: Boxes, maps: Tensor) -> Tensor:
    """The flat anchors (H*W*A, 4) of a level's (..., H, W) maps as a view of shape (A, H, W, 4)."""
    return anchors.tensor.unflatten(0, (*maps.shape[-2:], -1)).permute(2, 0, 1, 3)


def view_boxes(detector: DenseDetector, maps: Sequence[Tensor]) -> list[Tensor]:
    """Raw box maps (N, A*C, H, W) as views of shape (N, A, 4, H, W), or (N, A, 4, n+1, H, W) of a distribution head."""
    if isinstance(detector, DistributionBoxes):
        return detector.split_bins(maps)
    return [x.unflatten(1, (-1, 4)) for x in maps]


def decode(detector: DenseDetector, params: Tensor, anchors: Tensor, level: int) -> Tensor:
    """
    Decode with the detector's box transform, in fp32 whatever the autocast (``Box2BoxTransformLinear`` does not cast).

    Args:
        params: one level's box parameters as :func:`view_boxes` returns them.
        anchors: (A, H, W, 4) absolute xyxy.

    Returns:
        boxes (N, A, H, W, 4), absolute xyxy.
    """
    deltas = params.float()
    if isinstance(detector, DistributionBoxes):
        deltas = expected_distances(deltas, dim=3) * strides_of(detector)[level]
    transform = box_transform_of(detector)
    if type(transform) is Box2BoxTransform or type(transform) is Box2BoxTransformLinear:  # a subclass may differ
        return _apply_deltas(transform, deltas, anchors).movedim(0, -1)
    deltas = deltas.movedim(2, -1)
    flat_anchors = anchors.expand_as(deltas).reshape(-1, 4)
    return transform.apply_deltas(deltas.reshape(-1, 4), flat_anchors).view(deltas.shape)


def _apply_deltas(transform: Box2BoxTransform | Box2BoxTransformLinear, deltas: Tensor, anchors: Tensor) -> Tensor:
    """
    ``transform.apply_deltas``, bit for bit, of maps (N, A, 4, H, W), as maps (4, N, A, H, W): rows of boxes take twice
    as long to decode and to compare.
    """
    first, second = deltas.movedim(2, 0).split(2)
    low, high = anchors.to(deltas.dtype).movedim(-1, 0).split(2)
    lows, highs = [], []
    for axis in (0, 1):
        size = high[axis] - low[axis]
        if isinstance(transform, Box2BoxTransformLinear):
            center = 0.5 * (low[axis] + high[axis])
            before, after = first[axis].relu(), second[axis].relu()
            if transform.normalize_by_size:
                before, after = before * size, after * size
        else:
            log_scale = (second[axis] / transform.weights[2 + axis]).clamp(max=transform.scale_clamp)
            center = first[axis] / transform.weights[axis] * size + (low[axis] + 0.5 * size)
            before = after = 0.5 * (log_scale.exp() * size)
        lows.append(center - before)
        highs.append(center + after)
    return torch.stack(lows + highs)
