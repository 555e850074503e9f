"""A student's taps through the rest of a teacher's head (CrossKD, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from d2kd.losses.align import align_statistics
from d2kd.modeling.adapters.base import Adapter, get_adapter
from d2kd.modeling.adapters.taps import Taps, run_block
from d2kd.modeling.detectors.interface import check_level

__all__ = ["cross_head", "tap_index", "tap_indices"]


def cross_head(
    adapter: Adapter,
    head: nn.Module,
    student_taps: Taps,
    teacher_taps: Taps,
    *,
    student_indices: Mapping[str, int],
    teacher_indices: Mapping[str, int],
    levels: Sequence[int] | None = None,
    tap_projectors: Mapping[str, nn.Conv2d] | None = None,
    align: bool = True,
) -> list[list[Tensor]]:
    """
    Send the student's taps through the last blocks and the predictors of the teacher's ``head`` (in eval mode).

    Each tap is first brought to the statistics of the teacher's tap and, as the papers' code does, passed through a
    ReLU unless it is the head's input (index 0). Gradient flows to the student's taps; the teacher's parameters
    require none.

    Args:
        adapter: how to read the teacher.
        student_taps, teacher_taps: (branch, index) -> one (N, C, H, W) map a level; equal shapes, but for C where
            there are ``tap_projectors``.
        student_indices, teacher_indices: for each branch, the number of blocks before the tap.
        levels: which of the teacher's levels these are; None: all.
        tap_projectors: for each branch, from the student's channels to the teacher's; None: none.
        align: align statistics and apply the ReLU; False sends the taps as they are.

    Returns:
        raw predictions as ``head.forward`` returns them: lists of per-level maps.
    """
    towers = adapter.towers(head)
    if levels is None:
        levels = range(len(next(iter(teacher_taps.values()))))
    per_level = []
    for i, level in enumerate(levels):
        outputs = {}
        for branch, blocks in towers.items():
            index = teacher_indices[branch]
            x = student_taps[branch, student_indices[branch]][i]
            if align:
                if tap_projectors is not None:
                    projector = tap_projectors[branch]
                    x = projector(x if torch.is_autocast_enabled(x.device.type) else x.to(projector.weight.dtype))
                with torch.autocast(x.device.type, enabled=False):
                    x = align_statistics(x, teacher_taps[branch, index][i], rectify=index > 0)
                x = x.to(teacher_taps[branch, index][i].dtype)  # the precision of the layers that follow
            for block in blocks[index:]:
                x = run_block(block, x, level)
            outputs[branch] = x
        per_level.append(check_level(adapter.predict(head, level, outputs), type(adapter).__name__))
    return [list(maps) for maps in zip(*per_level)]


def tap_index(detector: DenseDetector, branch: str, tail: int) -> int:
    """Number of tower blocks before the tap that leaves ``tail`` of them; the pairing check sees that they exist."""
    return len(get_adapter(detector).towers(detector.head)[branch]) - tail


def tap_indices(detector: DenseDetector, tails: Iterable[int]) -> dict[str, set[int]]:
    """For each branch, :func:`tap_index` of all ``tails``; nothing without any."""
    tails = set(tails)
    branches = get_adapter(detector).towers(detector.head) if tails else ()
    return {branch: {tap_index(detector, branch, tail) for tail in tails} for branch in branches}
