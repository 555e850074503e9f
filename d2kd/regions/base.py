"""The registry of regions, and what they share: checks of options, and maps against flat anchors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from fvcore.common.registry import Registry
from torch import Tensor

from d2kd.structures import Assignment, DenseOutput

REGION_REGISTRY = Registry("REGION")
REGION_REGISTRY.__doc__ = """
Registry for functions that make regions: ``f(source, teacher, assignment, **options) -> per level, detached weights of
shape (N, A, H, W)``, where source and teacher are dense outputs in the same anchors and assignment holds the labels of
those anchors. A function may make several regions at once: it returns a dict of such lists by name, and a loss names
one of them with a dot, "function.name". Options are keyword-only: they are what a loss's ``region`` mapping may hold
beside "name".

A region is empty in images without labels, unless its function is marked :func:`label_free`.
"""

_Region = TypeVar("_Region", bound=Callable)

_LABEL_FREE: set[Callable] = set()


def label_free(region: _Region) -> _Region:
    """Mark a region that reads nothing of the labels but which locations are ignored: it holds without labels too."""
    _LABEL_FREE.add(region)
    return region


def is_label_free(function: str) -> bool:
    """Whether the regions of the registered ``function`` hold in images without labels."""
    return REGION_REGISTRY.get(function) in _LABEL_FREE


def run_region(
    function: str, source: DenseOutput, teacher: DenseOutput, assignment: Assignment, options: Mapping[str, Any]
) -> Mapping[str, Sequence[Tensor]]:
    """What the registered ``function`` makes, by name; "" where it makes one region."""
    made = REGION_REGISTRY.get(function)(source, teacher, assignment, **options)
    return made if isinstance(made, Mapping) else {"": made}


def check_options(function: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Run the registered ``function`` on a batch of one cell, so that it looks at its options before training does.

    Returns:
        the names of the regions that it makes, as of :func:`run_region`.

    Raises:
        ValueError: the value of an option.
    """
    with torch.device("cpu"):  # whatever device the model is being built on
        output = DenseOutput(
            logits=[torch.zeros(1, 1, 1, 1, 1)],
            box_params=[torch.zeros(1, 1, 4, 1, 1)],
            anchors=[torch.tensor([0.0, 0.0, 8.0, 8.0]).view(1, 1, 1, 4)],
            decode=lambda params, anchors, level: anchors + params.movedim(2, -1),
        )
        background = Assignment.from_flat(
            torch.ones(1, 1, dtype=torch.int64),
            num_classes=1,
            sizes=[(1, 1)],
            gt_boxes=[torch.zeros(0, 4)],
            gt_classes=[torch.zeros(0, dtype=torch.int64)],
            valid=torch.ones(1, 1, dtype=torch.bool),
        )
        return tuple(run_region(function, output, output, background, options))


def check_option(option: str, value: object, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{option} is {value!r}, expected {expected}.")


def check_choice(option: str, value: object, choices: Sequence[str]) -> None:
    check_option(option, value, value in choices, f"one of {', '.join(choices)}")


def check_bool(option: str, value: object) -> None:
    check_option(option, value, isinstance(value, bool), "true or false")


def check_fraction(option: str, value: float) -> None:
    check_option(option, value, is_number(value) and 0 <= value < 1, "a number in [0, 1)")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def max_score(logits: Tensor, dim: int) -> Tensor:
    """max_k sigma(z_k) over axis ``dim``."""
    return logits.amax(dim).float().sigmoid()


def flat_anchors(source: DenseOutput) -> list[Tensor]:
    """Per level, (A, H, W, 4) -> (R_l, 4)."""
    return [x.permute(1, 2, 0, 3).flatten(0, 2) for x in source.anchors]


def flat_maps(maps: Sequence[Tensor]) -> Tensor:
    """Per level, (N, A, H, W) -> (N, R)."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in maps], dim=1)


def level_maps(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flat_maps`: (N, R) -> per level, (N, A, H, W) of the sizes of ``like``."""
    levels = flat.split([x[0].numel() for x in like], dim=1)
    return [
        level.unflatten(1, (x.shape[2], x.shape[3], x.shape[1])).permute(0, 3, 1, 2) for level, x in zip(levels, like)
    ]
