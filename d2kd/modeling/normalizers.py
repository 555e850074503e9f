"""What each distillation term is divided by; the only numbers that ranks exchange to compute a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

from d2kd.losses import DistillationLoss
from d2kd.modeling.dense_output import Assignment

__all__ = ["compute_normalizers"]

#: A region that weighs less than this in all is empty: its term is zero, not zero divided by zero.
_SMALLEST_REGION = 1e-6


def compute_normalizers(
    losses: Mapping[str, DistillationLoss],
    regions: Mapping[str, Sequence[Tensor]],
    assignments: Mapping[str, Assignment],
    *,
    ema: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """
    Every rank calls it once a step, with the same losses.

    Args:
        losses: the losses of this step by name.
        regions: for each of them, its region: one map a level.
        assignments: for each source, the labels of its anchors.
        ema: the student's own running normaliser; 0 if it keeps none.

    Returns:
        for each loss a scalar, or (L,) where each level has its own; and the mean of ``ema`` over ranks, float64.

    Raises:
        ValueError: a loss asks for "ema" of a student that keeps none.
    """
    some = next(iter(assignments.values()))
    positives = {source: assignment.num_positives for source, assignment in assignments.items()}
    parts = {
        "ema": torch.tensor([ema], dtype=torch.float64),
        "images": torch.tensor([len(some.gt_boxes)], dtype=torch.float64),
        **{("positives", source): per_image.sum().view(1) for source, per_image in positives.items()},
        **{
            ("region", name): torch.stack([weight.sum() for weight in regions[name]])
            for name, loss in losses.items()
            if loss.normalizer in ("locations", "level_locations")
        },
    }
    shared = torch.cat([part.to(some.labels[0].device, torch.float64) for part in parts.values()])
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(shared)
    totals = dict(zip(parts, shared.split([len(part) for part in parts.values()]), strict=True))

    normalizers: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if loss.normalizer == "positives":
            value = totals["positives", loss.source][0].clamp(min=1) / world_size
        elif loss.normalizer == "images":
            value = totals["images"][0] / world_size / 2
        elif loss.normalizer == "locations":
            value = (totals["region", name].sum() / world_size).clamp(min=_SMALLEST_REGION)
        elif loss.normalizer == "level_locations":
            value = (totals["region", name] / world_size).clamp(min=_SMALLEST_REGION)
        elif loss.normalizer == "local_positives":
            value = positives[loss.source].clamp(min=1).sum()
        elif loss.normalizer == "ema":
            if not ema:
                raise ValueError(
                    f"model.losses.{name}.normalizer is 'ema', but the student keeps no loss_normalizer: use "
                    "'positives'."
                )
            value = shared.new_tensor(ema)
        else:  # "none"
            value = shared.new_ones(())
        normalizers[name] = value.float()
    return normalizers, totals["ema"][0] / world_size
