"""What is watched at every step: the gap between student and teacher, and that every term is finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import accumulate
from operator import add

import torch
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import Tensor

from d2kd.modeling.distillation.non_finite import StepEvidence
from d2kd.structures import Assignment, DenseOutput

__all__ = ["read_step", "scores_at_positives", "warn_of_unlabelled"]

_LOGGER = f"detectron2.{__name__}"


@torch.no_grad()
def scores_at_positives(student: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> dict[str, Tensor]:
    """
    Means over positives, 0 without any: ``kd/gap_at_positives`` of |sigma(t) - sigma(z)| at the object's class, and
    ``kd/teacher_score_at_positives`` of sigma(t) there, without which a small gap means nothing: that of two untrained
    detectors is small.

    Args:
        student, teacher: in the same anchors and classes.
        assignment: the labels of those anchors.
    """
    gaps, scores, counts = [], [], []
    for ours, theirs, labels, positive in zip(student.logits, teacher.logits, assignment.labels, assignment.positives):
        # Gathered where the maps lie, and masked after: no class map is copied, and no GPU waits for an index.
        classes = labels.clamp(0, assignment.num_classes - 1).unsqueeze(student.class_dim)
        ours, theirs = (x.gather(student.class_dim, classes).float().sigmoid() for x in (ours, theirs))
        gaps.append(((theirs - ours).abs().squeeze(student.class_dim) * positive).sum())
        scores.append((theirs.squeeze(student.class_dim) * positive).sum())
        counts.append(positive.sum())
    count = reduce(add, counts).clamp(min=1)
    sums = {"kd/gap_at_positives": gaps, "kd/teacher_score_at_positives": scores}
    return {name: reduce(add, levels) / count for name, levels in sums.items()}


def warn_of_unlabelled(num_labelled: int, num_images: int, takers: Sequence[str]) -> None:
    """
    Say, once a process, what images without labels are used for: a mapper may have dropped annotations by mistake.

    Args:
        takers: names of the losses that they train.
    """
    use = f"only {', '.join(takers)} use them" if takers else "no loss of this step can use them, they are left out"
    log_first_n(
        logging.WARNING,
        f"{num_images - num_labelled} of this batch's {num_images} images have no labels ('instances'): {use}.",
        name=_LOGGER,
        key="caller",
    )
    if num_labelled == 0:
        log_first_n(
            logging.WARNING,
            "This batch has no labels at all, so that its detection losses are 0. If that is not meant, look at the "
            "data mapper: Detectron2's drops annotations with is_train=False.",
            name=_LOGGER,
            key="caller",
        )


def read_step(
    losses: Mapping[str, Tensor], monitors: Mapping[str, Tensor], evidence: StepEvidence
) -> tuple[dict[str, float], set[str]]:
    """
    See that all losses are finite, and read what is watched, in one transfer. Every rank must call it, with the same
    losses and monitors.

    Args:
        losses: the step's terms.
        monitors: scalars to be logged.
        evidence: of this rank's step, looked at if it is not finite.

    Returns:
        the monitors of this rank as numbers, and the names of losses and monitors that are not exactly zero on some
        rank.

    Raises:
        FloatingPointError: on all ranks, in the same words, if a term is not finite on any. On the ranks on which one
            is, a :class:`NonFiniteError`.
    """
    terms = torch.stack([value.detach().float() for value in losses.values()])
    watched = torch.stack([terms.new_zeros(()), *(value.float() for value in monitors.values())])[1:]
    bad = ~terms.isfinite()
    flags = torch.cat([bad, terms != 0, watched != 0]).float()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    found = torch.cat([flags, bad.float(), watched]).tolist()
    sizes = len(losses), len(losses) + len(monitors), len(losses), len(monitors)
    bad_on_any, nonzero, own, values = (found[end - size : end] for size, end in zip(sizes, accumulate(sizes)))
    if any(bad_on_any):
        names = ", ".join(name for name, flag in zip(losses, own) if flag)
        error = evidence.error(names) if names else None
        told = comm.all_gather(None if error is None else str(error))
        raise error or FloatingPointError(next(filter(None, told)))
    moving = {name for name, flag in zip([*losses, *monitors], nonzero) if flag}
    return dict(zip(monitors, values)), moving
