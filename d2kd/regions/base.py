"""The registry of regions, and what they share: reading options, and maps against flat anchors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from fvcore.common.registry import Registry
from torch import Tensor

from d2kd.structures import DenseOutput

REGION_REGISTRY = Registry("REGION")
REGION_REGISTRY.__doc__ = """
Registry for regions: ``f(source, teacher, assignment, **options) -> per level, detached weights of shape
(N, A, H, W)``, where source and teacher are dense outputs in the same anchors and assignment holds the labels of those
anchors. A region that is made of several areas returns a dict of them, name -> such a list. Options are keyword-only:
they are what a loss's ``region`` mapping may hold beside "name" and "area".

A region is empty in images without labels, unless it is marked :func:`label_free`.
"""

_Region = TypeVar("_Region", bound=Callable)


def label_free(region: _Region) -> _Region:
    """Mark a region that reads nothing of the labels but which locations are ignored: it holds without labels too."""
    region.label_free = True
    return region


def is_label_free(name: str) -> bool:
    """Whether the registered region ``name`` holds in images without labels."""
    return getattr(REGION_REGISTRY.get(name), "label_free", False)


def option_error(region: str, option: str, value: Any, expected: str) -> ValueError:
    return ValueError(
        f"Option {option} of region {region!r} is {value!r}, expected {expected}: change region.{option} of the loss "
        "that names it."
    )


def check_choice(region: str, option: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise option_error(region, option, value, f"one of {', '.join(choices)}")


def check_fraction(region: str, option: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1:
        raise option_error(region, option, value, "a number in [0, 1)")


def check_bool(region: str, option: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise option_error(region, option, value, "true or false")


def check_count(region: str, option: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise option_error(region, option, value, f"a whole number of at least {least}")


def check_options(region: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """
    Run a registered region on a batch of one cell, so that it looks at its options before training does.

    Returns:
        the names of its areas; empty for a region without.

    Raises:
        ValueError: the value of an option.
    """
    cell = torch.zeros(1, 1, 1, 1)
    output = SimpleNamespace(
        logits=[cell.unsqueeze(2)],
        class_dim=2,
        anchors=[torch.tensor([0.0, 0.0, 8.0, 8.0]).view(1, 1, 1, 4)],
        boxes=[torch.zeros(1, 1, 1, 1, 4)],
        centerness=None,
    )
    assignment = SimpleNamespace(
        labels=[cell.long()],
        positives=[cell > 0],
        valid=[cell == 0],
        gt_boxes=[torch.zeros(0, 4)],
        gt_classes=[torch.zeros(0, dtype=torch.int64)],
        matched_boxes=None,
        iou_thresholds=None,
        num_classes=1,
    )
    made = REGION_REGISTRY.get(region)(output, output, assignment, **options)
    return tuple(made) if isinstance(made, Mapping) else ()


def max_score(logits: Tensor, dim: int) -> Tensor:
    """max_k sigma(z_k) over axis ``dim``, fp32."""
    return logits.amax(dim).float().sigmoid()


def flat_anchors(source: DenseOutput) -> list[Tensor]:
    """Per level, (A, H, W, 4) -> (R_l, 4) in (H, W, A) order."""
    return [x.permute(1, 2, 0, 3).flatten(0, 2) for x in source.anchors]


def flat_maps(maps: Sequence[Tensor]) -> Tensor:
    """Per level, (N, A, H, W) -> (N, R): the levels in a row, each in (H, W, A) order."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in maps], dim=1)


def level_maps(rows: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """The way back: one (R,) an image -> per level, (N, A, H, W) of the sizes of ``like``."""
    levels = torch.stack(list(rows)).split([x[0].numel() for x in like], dim=1)
    return [
        flat.unflatten(1, (x.shape[2], x.shape[3], x.shape[1])).permute(0, 3, 1, 2) for flat, x in zip(levels, like)
    ]
