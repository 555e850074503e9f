"""What is watched at every step: the gap between student and teacher, and that every term is finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import Tensor

from d2kd.structures import Assignment, DenseOutput

__all__ = ["gap_at_positives", "not_finite", "read_step", "warn_of_unlabelled"]

_LOGGER = f"detectron2.{__name__}"


@torch.no_grad()
def gap_at_positives(student: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> Tensor:
    """
    Mean over positives of |sigma(t) - sigma(z)| at the object's class; 0 without positives.

    Args:
        student, teacher: in the same anchors and classes.
        assignment: the labels of those anchors.
    """
    gaps, counts = [], []
    for ours, theirs, labels, positive in zip(student.logits, teacher.logits, assignment.labels, assignment.positives):
        # Gathered where the maps lie, and masked after: no class map is copied, and no GPU waits for an index.
        classes = labels.clamp(0, assignment.num_classes - 1).unsqueeze(student.class_dim)
        ours, theirs = (x.gather(student.class_dim, classes).float().sigmoid() for x in (ours, theirs))
        gaps.append(((theirs - ours).abs().squeeze(student.class_dim) * positive).sum())
        counts.append(positive.sum())
    return reduce(add, gaps) / reduce(add, counts).clamp(min=1)


def warn_of_unlabelled(num_labelled: int, num_images: int, takers: Sequence[str]) -> None:
    """
    Say, once a process, what images without labels are used for: a mapper may have dropped annotations by mistake.

    Args:
        takers: names of the losses that they train.
    """
    use = f"they train {', '.join(takers)} alone" if takers else "no loss of this step can use them, they are left out"
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


def read_step(losses: Mapping[str, Tensor], monitors: Mapping[str, Tensor]) -> dict[str, float]:
    """
    See that all losses are finite, and read what is watched, in one transfer. Every rank must call it, with the same
    losses.

    Args:
        losses: the step's terms.
        monitors: scalars to be logged.

    Returns:
        the monitors as numbers.

    Raises:
        FloatingPointError: on all ranks if a term is not finite on any; the terms are named.
    """
    bad = torch.stack([~torch.isfinite(value.detach()) for value in losses.values()]).float()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    values = torch.cat([bad, *(value.float().view(1) for value in monitors.values())]).tolist()
    names = [name for name, flag in zip(losses, values) if flag]
    if names:
        raise FloatingPointError(not_finite(", ".join(names)))
    return dict(zip(monitors, values[len(losses) :]))


def not_finite(names: str) -> str:
    """The sentence for values that are not finite."""
    return (
        f"Not finite: {names}. Lower the learning rate, clip gradients (train.clip_grad) or train without fp16; if "
        "only loss_kd_* terms are named, look at the teacher's predictions on this data."
    )
