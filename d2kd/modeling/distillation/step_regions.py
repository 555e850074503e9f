"""The regions of one step: made once, shared by all parts that name the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from d2kd.losses import DistillationLoss
from d2kd.regions import REGION_REGISTRY
from d2kd.structures import Assignment, DenseOutput

__all__ = ["make_regions", "source_key", "stack_parts"]


def source_key(loss: DistillationLoss) -> Any:
    """Which dense output a loss reads: crossed ones are made once a tail."""
    return (loss.source, loss.tail) if loss.source == "crossed" else loss.source


def make_regions(
    losses: Mapping[str, DistillationLoss],
    sources: Mapping[Any, DenseOutput],
    teacher: DenseOutput,
    assignments: Mapping[str, Assignment],
) -> dict[str, list[Sequence[Tensor]]]:
    """
    Args:
        losses: the losses of this step by name.
        sources: the dense outputs that they read, by :func:`source_key`.
        teacher: the teacher's.
        assignments: "student" or "crossed" -> the labels of that source's anchors.

    Returns:
        for each loss the region of each of its parts, per level, as the loss reads it.
    """
    made: dict[tuple, Any] = {}
    regions: dict[str, list[Sequence[Tensor]]] = {}
    for name, loss in losses.items():
        source, assignment = sources[source_key(loss)], assignments[loss.source]
        regions[name] = []
        for part in loss.parts:
            key = (part.region_key, source_key(loss))
            if key not in made:
                with torch.autocast(source.logits[0].device.type, enabled=False):
                    made[key] = REGION_REGISTRY.get(part.region)(source, teacher, assignment, **part.options)
            region = loss.prepare_region(made[key] if part.area is None else made[key][part.area])
            if assignment.num_labelled < len(assignment.gt_boxes) and not part.label_free:
                region = [_labelled_alone(weight, assignment.num_labelled) for weight in region]
            if loss.skip_empty_levels:
                region = [weight * positive.any() for weight, positive in zip(region, assignment.positives)]
            regions[name].append(region)
    return regions


def _labelled_alone(weight: Tensor, num_labelled: int) -> Tensor:
    """``weight`` (N, ...), 0 in the images that come after the first ``num_labelled``."""
    return torch.cat([weight[:num_labelled], torch.zeros_like(weight[num_labelled:])])


def stack_parts(regions: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The regions of a loss's parts as the loss takes them: per level, of several parts stacked in front."""
    return regions[0] if len(regions) == 1 else [torch.stack(levels) for levels in zip(*regions, strict=True)]
