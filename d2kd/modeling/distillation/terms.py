"""The distillation losses of a step: which are on, and what they add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.utils.events import get_event_storage
from torch import Tensor

from d2kd.losses import DistillationLoss
from d2kd.modeling.distillation.step_regions import stack_regions
from d2kd.structures import DenseOutput

__all__ = ["active_losses", "add_terms"]


def active_losses(losses: Mapping[str, DistillationLoss]) -> dict[str, DistillationLoss]:
    """The losses that are on in this step; tells each which step it is, and logs what schedules make of weights."""
    if not losses:
        return {}
    storage = get_event_storage()
    for name, loss in losses.items():
        loss.iteration = storage.iter
        if loss.schedule is not None:
            storage.put_scalar(f"kd/{name}_weight", loss.scheduled_weight, smoothing_hint=False)
    return {name: loss for name, loss in losses.items() if loss.scheduled_weight > 0}


def add_terms(
    terms: dict[str, Tensor],
    losses: Mapping[str, DistillationLoss],
    sources: Mapping[tuple[str, int], DenseOutput],
    teacher: DenseOutput,
    regions: Mapping[str, Sequence[Sequence[Tensor]]],
    normalizers: Mapping[str, Tensor],
) -> None:
    """
    Add each loss, normalised and weighted, to its ``loss_kd_<name>``. Call it outside autocast.

    Args:
        terms: the step's scalars by name; a distillation loss's is there, 0 in the graph of what it trains.
        losses: those that are on, by name.
        sources: the dense outputs that they compare with the teacher's, by ``source_key``.
        teacher: its dense output.
        regions: of each loss's regions the weights on each level, (N, A, H, W).
        normalizers: what each loss's sums, one a region, are divided by.
    """
    for name, loss in losses.items():
        sums = loss(sources[loss.source_key], teacher, stack_regions(regions[name]))
        terms[f"loss_kd_{name}"] += loss.scheduled_weight * (sums / normalizers[name]).sum()
