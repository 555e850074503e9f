"""What is watched at every step: the gap between student and teacher, and that every term is finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.utils import comm
from torch import Tensor

from d2kd.modeling.dense_output import Assignment, DenseOutput

__all__ = ["check_finite", "gap_at_positives"]


@torch.no_grad()
def gap_at_positives(student: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> Tensor:
    """
    Mean over positives of |sigma(t) - sigma(z)| at the object's class; 0 without positives.

    Args:
        student, teacher: in the same anchors and classes.
        assignment: the labels of those anchors.
    """
    gaps = []
    for level, positive in enumerate(assignment.positives):
        classes = assignment.labels[level][positive][:, None]
        ours, theirs = (
            output.logits[level].movedim(output.class_dim, -1)[positive].gather(1, classes).float().sigmoid()
            for output in (student, teacher)
        )
        gaps.append((theirs - ours).abs().flatten())
    gaps = torch.cat(gaps)
    return gaps.sum() / max(len(gaps), 1)


def check_finite(losses: Mapping[str, Tensor]) -> None:
    """
    Every rank must call it, with the same names.

    Raises:
        FloatingPointError: on all ranks if a term is not finite on any; the terms are named.
    """
    bad = torch.stack([~torch.isfinite(value.detach()) for value in losses.values()]).float()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
    bad = bad.tolist()
    if any(bad):
        names = [name for name, flag in zip(losses, bad) if flag]
        raise FloatingPointError(
            f"Not finite: {', '.join(names)}. Lower the learning rate, clip gradients (train.clip_grad) or train "
            "without fp16; if only loss_kd_* terms are named, look at the teacher's predictions on this data."
        )
