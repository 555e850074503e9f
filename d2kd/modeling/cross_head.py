"""The crossed output: the student's taps through the rest of the teacher's head (CrossKD, section 3.2)."""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn
from torch.nn import functional as F

from d2kd.losses.align import align_statistics
from d2kd.modeling.adapters import Adapter
from d2kd.modeling.taps import Taps, record_taps, run_block

__all__ = ["cross_head", "crosses_itself"]


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


@torch.no_grad()
def crosses_itself(detector: DenseDetector, adapter: Adapter, indices: dict[str, int]) -> bool:
    """
    Whether sending a detector's own taps through the rest of its head gives its own predictions: that is, whether the
    blocks and predictors that ``adapter`` names are all that its head's ``forward`` does.

    Args:
        detector: in eval mode; run on random features of 4x4 cells.
        adapter: how to read it.
        indices: for each branch, the number of blocks before the tap.
    """
    channels = detector.backbone.output_shape()[detector.head_in_features[0]].channels
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, channels, 4, 4, generator=generator) for _ in detector.head_in_features]
    features = [x.to(detector.pixel_mean) for x in features]
    with torch.autocast(detector.device.type, enabled=False):
        wanted = {branch: {index} for branch, index in indices.items()}
        with record_taps(adapter.towers(detector.head), wanted, features) as taps:
            expected = detector.head(features)
        found = cross_head(
            adapter, detector.head, taps, taps, student_indices=indices, teacher_indices=indices, align=False
        )
    return all(
        torch.allclose(a, b, rtol=1e-2, atol=1e-3)
        for maps, expected_maps in zip(found, expected)
        for a, b in zip(maps, expected_maps)
    )
