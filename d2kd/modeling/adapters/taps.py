"""Towers, and the taps recorded while a head runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from detectron2.layers import CycleBatchNormList
from torch import Tensor, nn

__all__ = ["Block", "Taps", "guarded_hooks", "record_taps", "run_block", "split_tower", "tap_channels"]

#: Modules that run one after the other: a convolution, its norm if any, its activation.
Block = Sequence[nn.Module]
#: (branch, number of blocks before the tap) -> one activation a level.
Taps = dict[tuple[str, int], list[Tensor]]


def split_tower(tower: nn.Module) -> list[Block]:
    """
    Split a head's tower into blocks; each block starts at a convolution (or is a module that contains one).

    Raises:
        TypeError: the tower is not an ``nn.Sequential`` that starts with a convolution.
    """
    if not isinstance(tower, nn.Sequential):
        raise TypeError(
            f"Expected a tower of type nn.Sequential, found {type(tower).__name__}: write an adapter whose "
            "towers() lists the blocks of this head."
        )
    blocks: list[Block] = []
    for module in tower:
        if any(isinstance(m, nn.Conv2d) for m in module.modules()):
            blocks.append([module])
        elif blocks:
            blocks[-1] = [*blocks[-1], module]
        else:
            raise TypeError(
                f"Expected a tower that starts with a convolution, found {type(module).__name__}: write an "
                "adapter whose towers() lists the blocks of this head."
            )
    return blocks


def tap_channels(blocks: Sequence[Block], index: int, in_channels: int) -> int:
    """Channels of the activation after the first ``index`` blocks of a tower fed with ``in_channels``."""
    if index == 0:
        return in_channels
    return [m for module in blocks[index - 1] for m in module.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def run_block(block: Block, x: Tensor, level: int) -> Tensor:
    """Run one block of a frozen (eval mode) tower on the map of one level."""
    for module in block:
        if isinstance(module, CycleBatchNormList):
            # Its counter belongs to whole passes over all levels; a call from here would shift it.
            x = module[level](x)
            if module._affine:
                x = x * module.weight.reshape(1, -1, 1, 1) + module.bias.reshape(1, -1, 1, 1)
        else:
            x = module(x)
    return x


def guarded_hooks() -> AbstractContextManager[object]:
    """
    Inside, what torch.compile compiles sees hooks that are added later. A compiled head must run inside from its first
    call if :func:`record_taps` is to record its taps.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        return nullcontext()
    return torch._dynamo.config.patch(skip_nnmodule_hook_guards=False)


@contextmanager
def record_taps(
    towers: Mapping[str, Sequence[Block]], indices: Mapping[str, set[int]], features: Sequence[Tensor]
) -> Iterator[Taps]:
    """
    Record the activations after block ``i`` of each branch for every ``i`` of ``indices[branch]`` while the head
    runs inside the ``with``; nothing runs twice and no hook outlives it. Index 0 is the head's input itself.

    Raises:
        ValueError: on leaving, a tap was not recorded exactly once a level, or not in the order and size of the levels.
    """
    taps: Taps = {}
    handles = []
    for branch, wanted in indices.items():
        for index in wanted:
            if index == 0:
                taps[branch, 0] = list(features)
                continue
            record: list[Tensor] = []
            taps[branch, index] = record
            last = towers[branch][index - 1][-1]
            handles.append(last.register_forward_hook(lambda m, x, y, record=record: record.append(y)))
    try:
        with guarded_hooks():
            yield taps
    finally:
        for handle in handles:
            handle.remove()
    for (branch, index), record in taps.items():
        calls, rest = divmod(len(record), len(features))
        if calls > 1 and not rest:
            raise ValueError(
                f"The head calls block {index} of its '{branch}' tower {calls} times a level, expected once, since its "
                "output is taken from that call: it shares that module between blocks (give each its own), or a tower "
                "between branches (call it once and use the output again). Or write an adapter whose towers() names "
                "blocks that run once (docs/own_detector.md#a-head-that-d2kd-does-not-know), or choose losses with "
                "source='student'."
            )
        if len(record) != len(features):
            raise ValueError(
                f"Tap after block {index} of the '{branch}' tower was recorded {len(record)} times for "
                f"{len(features)} levels, expected once a level: the head shares that module between "
                "blocks, calls it once a branch, or does not call it level by level. Call it once a level, or write an "
                "adapter whose towers() names the modules that are called so. A compiled head that ran before training "
                "needs torch._dynamo.config.skip_nnmodule_hook_guards=False from its first call."
            )
        sizes = [tuple(x.shape[-2:]) for x in features]
        found = [tuple(x.shape[-2:]) if isinstance(x, Tensor) else type(x).__name__ for x in record]
        if found != sizes:
            raise ValueError(
                f"Tap after block {index} of the '{branch}' tower has the maps {found} for levels of {sizes}: d2kd "
                "takes the n-th call of a block for the n-th level, and blocks that keep a map's size. Let the head's "
                "forward go through the levels in order, or write an adapter whose towers() names other blocks."
            )
