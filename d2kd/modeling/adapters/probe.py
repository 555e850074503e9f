"""Running a detector's head on made-up maps, which leaves it as it was, and checking its adapter against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from detectron2.layers import CycleBatchNormList
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor

from d2kd.modeling.adapters.base import Adapter
from d2kd.modeling.adapters.tails import cross_head
from d2kd.modeling.adapters.taps import Taps, record_taps
from d2kd.modeling.detectors.interface import pixel_statistics, strides_of
from d2kd.structures import kept_random_state

__all__ = ["IMAGES", "AdapterCheck", "cross", "crosses_itself", "make_features", "undisturbed"]

#: Images of a made-up batch.
IMAGES = 2


class AdapterCheck:
    """A check of an adapter against a detector that it reads: names both in the error where they do not fit."""

    def __init__(self, detector: DenseDetector, adapter: Adapter) -> None:
        self.detector = detector
        self.adapter = adapter

    def _sentence(self, method: str, task: str, found: str) -> str:
        detector, head = type(self.detector).__name__, type(self.detector.head).__name__
        return (
            f"{type(self.adapter).__name__} does not fit this {detector} with a {head}: {found.rstrip('.')}. Register "
            f"an Adapter for {detector} whose {method}() {task} (docs/own_detector.md)."
        )

    def refuse(self, method: str, task: str, found: str) -> NoReturn:
        """Raise a ValueError: ``found`` shows that the adapter needs a ``method`` of its own, which does ``task``."""
        raise ValueError(self._sentence(method, task, found))

    @contextmanager
    def using(self, method: str, task: str) -> Iterator[None]:
        """Turn whatever goes wrong inside into a TypeError that names the adapter's ``method``."""
        try:
            yield
        except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(self._sentence(method, task, f"{method}() fails with {error}")) from error


@contextmanager
def undisturbed(detector: DenseDetector) -> Iterator[None]:
    """Inside, the detector is in eval mode and may be run; afterwards it, and the random state, are as they were."""
    modes = [(module, module.training) for module in detector.modules()]
    buffers = [
        (module, name, x, x.clone())
        for module, _ in modes
        for name, x in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    cycles = [(module, module._pos) for module, _ in modes if isinstance(module, CycleBatchNormList)]
    device = detector.device
    try:
        with kept_random_state(device), torch.no_grad(), torch.autocast(device.type, enabled=False):
            detector.eval()
            for cycle, _ in cycles:
                cycle._pos = 0
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for cycle, position in cycles:
            cycle._pos = position
        for module, name, buffer, value in buffers:
            setattr(module, name, buffer)
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def make_features(detector: DenseDetector) -> list[Tensor]:
    """Random maps for the head, of a pyramid whose coarsest level has 1x2 cells."""
    generator = torch.Generator().manual_seed(0)
    shapes = detector.backbone.output_shape()
    strides = strides_of(detector)
    features = []
    for name, stride in zip(detector.head_in_features, strides):
        height, width = (-(-cells * max(strides) // stride) for cells in (1, 2))
        features.append(torch.randn(IMAGES, shapes[name].channels, height, width, generator=generator))
    pixel_mean, _ = pixel_statistics(detector)
    like = next(detector.head.parameters(), pixel_mean)
    return [x.to(like) for x in features]


def crosses_itself(detector: DenseDetector, adapter: Adapter, indices: Mapping[str, int]) -> bool:
    """
    Whether sending a detector's own taps through the rest of its head gives its own predictions: that is, whether the
    blocks and predictors that ``adapter`` names are all that its head's ``forward`` does. The detector is left as it
    was.

    Args:
        detector: run on made-up features.
        adapter: how to read it.
        indices: for each branch, the number of blocks before the tap.

    Raises:
        TypeError: ``adapter`` fails on this head.
    """
    check = AdapterCheck(detector, adapter)
    with undisturbed(detector):
        features = make_features(detector)
        wanted = {branch: {index} for branch, index in indices.items()}
        with record_taps(adapter.towers(detector.head), wanted, features) as taps:
            predictions = detector.head(features)
        return cross(check, predictions, taps, indices)[1] is None


def cross(
    check: AdapterCheck, predictions: Sequence[Sequence[Tensor]], taps: Taps, indices: Mapping[str, int]
) -> tuple[list[list[Tensor]], str | None]:
    """The detector's own taps through its own head: raw predictions, and what differs in them."""
    with check.using("predict", "runs the predictors of its head"):
        crossed = cross_head(
            check.adapter,
            check.detector.head,
            taps,
            taps,
            student_indices=dict(indices),
            teacher_indices=dict(indices),
            align=False,
        )
    if len(crossed) > len(predictions):
        return crossed, f"{len(crossed)} lists of maps and its {len(predictions)}"
    for index, (found_maps, maps) in enumerate(zip(crossed, predictions)):
        for level, (found, expected) in enumerate(zip(found_maps, maps)):
            if not _close(found, expected):
                return crossed, f"the maps of list {index} on level {level}"
    return crossed, None


def _close(found: Tensor, expected: Tensor) -> bool:
    """
    Equal but for rounding, in the measure of what differs from place to place in a map: the predictions of a head that
    was not trained are little more than their biases.
    """
    if found.shape != expected.shape:
        return False
    found, precision, expected = found.float(), torch.finfo(expected.dtype).eps, expected.float()
    finite = torch.where(expected.isfinite(), expected, 0)
    spread = (finite - finite.mean(dim=(0, 2, 3), keepdim=True)).square().mean().sqrt()
    tolerance = 1e-2 * spread + 32 * precision * finite.abs().max()
    same = (found == expected) | (found.isnan() & expected.isnan())
    return bool((same | ((found - expected).abs() <= tolerance)).all())
