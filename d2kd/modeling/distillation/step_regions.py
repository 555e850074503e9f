"""The regions of one step: made once, shared by all losses that name the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from d2kd.losses import DistillationLoss
from d2kd.regions import run_region
from d2kd.structures import Assignment, DenseOutput

__all__ = ["make_regions", "region_keys", "region_sizes", "stack_regions"]


def make_regions(
    losses: Mapping[str, DistillationLoss],
    sources: Mapping[tuple[str, int], DenseOutput],
    teacher: DenseOutput,
    assignments: Mapping[str, Assignment],
) -> dict[str, list[Sequence[Tensor]]]:
    """
    Args:
        losses: the losses of this step by name.
        sources: the dense outputs that they read, by ``DistillationLoss.source_key``.
        teacher: the teacher's.
        assignments: "student" or "crossed" -> the labels of that source's anchors.

    Returns:
        for each loss each of its regions, per level, as the loss reads it.
    """
    made: dict[tuple[Any, ...], Mapping[str, Sequence[Tensor]]] = {}
    regions: dict[str, list[Sequence[Tensor]]] = {}
    for name, loss in losses.items():
        source, assignment = sources[loss.source_key], assignments[loss.source]
        regions[name] = []
        for spec in loss.regions:
            key = (spec.function_key, loss.source_key)
            if key not in made:
                with torch.autocast(source.logits[0].device.type, enabled=False):
                    made[key] = run_region(spec.function, source, teacher, assignment, spec.options)
            region = loss.prepare_region(made[key][spec.member])
            if assignment.num_labelled < len(assignment.gt_boxes) and not spec.label_free:
                region = [_labelled_alone(weight, assignment.num_labelled) for weight in region]
            if loss.skip_empty_levels:
                region = [weight * positive.any() for weight, positive in zip(region, assignment.positives)]
            regions[name].append(region)
    return regions


def _labelled_alone(weight: Tensor, num_labelled: int) -> Tensor:
    """``weight`` (N, ...), 0 in the images that come after the first ``num_labelled``."""
    return torch.cat([weight[:num_labelled], torch.zeros_like(weight[num_labelled:])])


def stack_regions(regions: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """A loss's regions as the loss takes them: per level, of several regions stacked in front."""
    return regions[0] if len(regions) == 1 else [torch.stack(levels) for levels in zip(*regions, strict=True)]


def region_keys(name: str, loss: DistillationLoss) -> list[str]:
    """``kd/<loss>_locations``, or ``kd/<loss>_<region>_locations`` of each region where the loss has several."""
    return [f"kd/{name}_{spec.label}_locations" if spec.label else f"kd/{name}_locations" for spec in loss.regions]


def region_sizes(
    losses: Mapping[str, DistillationLoss],
    regions: Mapping[str, Sequence[Sequence[Tensor]]],
    num_images: int,
    num_labelled: int,
) -> dict[str, Tensor]:
    """
    By :func:`region_keys`, how many locations of an image each loss distils, each counted with its region's weight. A
    scalar each, to be logged.

    Args:
        losses: the losses of this step by name.
        regions: as :func:`make_regions` makes them.
        num_images: in the batch.
        num_labelled: how many of them have labels.
    """
    sizes = {}
    for name, loss in losses.items():
        for key, spec, region in zip(region_keys(name, loss), loss.regions, regions[name], strict=True):
            images = num_images if spec.label_free else max(num_labelled, 1)
            sizes[key] = reduce(add, (weight.sum() for weight in region)) / images
    return sizes
