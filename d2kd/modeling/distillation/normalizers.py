"""What a loss's sum over each of its regions is divided by; the only numbers that ranks exchange to compute a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

from d2kd.losses import SOURCES, DistillationLoss
from d2kd.structures import Assignment

__all__ = ["check_countable", "compute_normalizers"]

#: A region that weighs less than this in all is empty: its sum is zero, not zero divided by zero.
_SMALLEST_REGION = 1e-6

#: Of the running mean of positives, as Detectron2's of its normalisers.
_MOMENTUM = 0.9

_OF_THE_REGION = ("locations", "level_locations", "level_mean")


def check_countable(losses: Mapping[str, DistillationLoss], num_unlabelled: int) -> None:
    """
    Raises:
        ValueError: a loss counts positives as the papers' code does in a batch that has images without labels.
    """
    for name, loss in losses.items():
        if num_unlabelled and any(spec.label_free and spec.normalizer == "local_positives" for spec in loss.regions):
            raise ValueError(
                f"model.losses.{name}.normalizer is 'local_positives', which cannot count images without labels, and "
                f"this batch has {num_unlabelled}: use 'positives'."
            )


def compute_normalizers(
    losses: Mapping[str, DistillationLoss],
    regions: Mapping[str, Sequence[Sequence[Tensor]]],
    assignments: Mapping[str, Assignment],
    *,
    num_images: int,
    loss_normalizer: float,
    positives_per_image: Tensor,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """
    Every rank calls it once a step, with the same losses.

    Args:
        losses: the losses of this step by name.
        regions: for each of them, each of its regions: one map a level.
        assignments: for each source, the labels of its anchors.
        num_images: how many images this rank has; 0: the one that is labelled here stands in for an empty share.
        loss_normalizer: the student's own running normaliser; 0 if it keeps none.
        positives_per_image: (S,) float64, for each of SOURCES the running mean over images with labels; 0 for none yet.

    Returns:
        for each loss what its sums are divided by: a scalar, or (L,) where each level has its own, and of several
        regions (R,) or (L, R); and, float64, what is kept for the next steps: the "loss_normalizer" of each rank, and
        the new "positives_per_image".
    """
    some = next(iter(assignments.values()))
    world_size = comm.get_world_size()
    # The normaliser of each rank, images, images with labels; written there, since copies make the host wait.
    counts = torch.zeros(world_size + 2, dtype=torch.float64, device=some.labels[0].device)
    for index, value in ((comm.get_rank(), loss_normalizer), (-2, num_images), (-1, some.num_labelled)):
        counts[index].fill_(value)
    positives = {source: assignment.num_positives for source, assignment in assignments.items()}
    sums: dict[tuple[str, str, int], Tensor] = {
        ("counts", "", 0): counts,
        **{("positives", source, 0): per_image.sum().view(1) for source, per_image in positives.items()},
        **{
            ("region", name, index): torch.stack([weight.sum() for weight in regions[name][index]])
            for name, loss in losses.items()
            for index, spec in enumerate(loss.regions)
            if spec.normalizer in _OF_THE_REGION
        },
    }
    shared = torch.cat([value.double() for value in sums.values()])
    if world_size > 1:
        torch.distributed.all_reduce(shared)
    totals = dict(zip(sums, shared.split([len(value) for value in sums.values()]), strict=True))

    images, labelled_images = totals["counts", "", 0][-2:]
    means = positives_per_image.clone()
    for source in positives:
        i = SOURCES.index(source)
        now = totals["positives", source, 0][0] / labelled_images.clamp(min=1)
        mixed = torch.where(means[i] > 0, _MOMENTUM * means[i] + (1 - _MOMENTUM) * now, now)
        means[i] = torch.where(labelled_images > 0, mixed, means[i])

    def normalizer(name: str, index: int, kind: str, source: str, label_free: bool) -> Tensor:
        unlabelled = images - labelled_images if label_free else images.new_zeros(())
        if kind in _OF_THE_REGION:
            levels = totals["region", name, index]
            per_rank = (levels.sum() if kind == "locations" else levels) / world_size
            floored = per_rank.clamp(min=_SMALLEST_REGION)
            return floored * (levels > 0).sum().clamp(min=1) if kind == "level_mean" else floored
        if kind == "positives":
            mean = means[SOURCES.index(source)]
            assumed = unlabelled * torch.where(mean > 0, mean, 1)
            return (totals["positives", source, 0][0] + assumed).clamp(min=1) / world_size
        if kind == "images":
            return (labelled_images + unlabelled).clamp(min=1) / world_size / 2
        if kind == "local_positives":
            return positives[source].clamp(min=1).sum()
        return shared.new_ones(())  # "none"

    normalizers = {}
    for name, loss in losses.items():
        values = [
            normalizer(name, i, spec.normalizer, loss.source, spec.label_free).float()
            for i, spec in enumerate(loss.regions)
        ]
        several = len(values) > 1
        normalizers[name] = torch.stack(torch.broadcast_tensors(*values), dim=-1) if several else values[0]
    kept = {"loss_normalizer": totals["counts", "", 0][:-2], "positives_per_image": means}
    return normalizers, kept
