"""The crossed output: the student's taps through the rest of the teacher's head (CrossKD, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2kd.losses.align import align_statistics
from d2kd.modeling.adapters import Adapter
from d2kd.modeling.taps import Taps, run_block

__all__ = ["cross_head"]


def cross_head(
    adapter: Adapter,
    head: nn.Module,
    student_taps: Taps,
    teacher_taps: Taps,
    *,
    student_indices: dict[str, int],
    teacher_indices: dict[str, int],
    align: bool = True,
) -> list[list[Tensor]]:
    """
    Send the student's taps through the last blocks and the predictors of the teacher's ``head`` (in eval mode).

    Each tap is first brought to the statistics of the teacher's tap and, as the papers' code does, passed through a
    ReLU unless it is the head's input (index 0). Gradient flows to the student's taps; the teacher's parameters
    require none.

    Args:
        adapter: how to read the teacher.
        student_taps, teacher_taps: (branch, index) -> one (N, C, H, W) map a level; equal shapes.
        student_indices, teacher_indices: for each branch, the number of blocks before the tap.
        align: align statistics and apply the ReLU; False sends the taps as they are.

    Returns:
        raw predictions as ``head.forward`` returns them: lists of per-level maps.
    """
    towers = adapter.towers(head)
    num_levels = len(next(iter(teacher_taps.values())))
    per_level = []
    for level in range(num_levels):
        outputs = {}
        for branch, blocks in towers.items():
            index = teacher_indices[branch]
            x = student_taps[branch, student_indices[branch]][level]
            if align:
                with torch.autocast(x.device.type, enabled=False):
                    x = align_statistics(x, teacher_taps[branch, index][level])
                if index > 0:
                    x = F.relu(x)
            for block in blocks[index:]:
                x = run_block(block, x, level)
            outputs[branch] = x
        per_level.append(adapter.predict(head, level, outputs))
    return [list(maps) for maps in zip(*per_level)]
