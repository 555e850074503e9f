"""
Regions of FTPD beside those it shares with other methods: where the teacher is good, where an edge can be learnt.

"Where to distill" is one of two questions in the abstract of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025). What it
answers is in no public text: all regions here are reconstructed from that abstract and related work.
"""

from __future__ import annotations

import math
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from d2kd.regions.base import (
    REGION_REGISTRY,
    check_bool,
    check_choice,
    check_count,
    check_fraction,
    label_free,
    option_error,
)
from d2kd.regions.boxes import valuable_localization
from d2kd.regions.scores import labelled_locations, teacher_confidences
from d2kd.structures import Assignment, DenseOutput

#: Where FTPD's localisation terms teach, unless told otherwise: a loss's ``region``.
QUALITY = MappingProxyType({"name": "teacher_quality", "centerness": True})


@torch.no_grad()
def top_quality_region(quality: Tensor, *, topk: int = 100) -> Tensor:
    """
    The ``topk`` largest weights of each image; 0 elsewhere.

    Args:
        quality: (N, R) weights >= 0; 0: never in the region.
        topk: locations of an image, at least 1; fewer where fewer weigh anything. Which of equals are taken at the
            end of the list is left open.

    Returns:
        (N, R) float32 weights.

    Raises:
        ValueError: ``topk`` is no whole number of at least 1.
    """
    check_count("top_quality", "topk", topk, 1)
    values, indices = quality.float().topk(min(topk, quality.shape[1]), dim=1, sorted=False)
    return torch.zeros_like(quality, dtype=torch.float32).scatter_(1, indices, values)


@torch.no_grad()
def main_and_valuable_region(
    positives: Tensor, valuable: Tensor, *, quality: Tensor | None = None, gain: float = 0.25
) -> Tensor:
    """
    LD's two regions in one term: the positives with the teacher's quality, and beside them LD's valuable localisation
    region with ``gain``. A positive that lies in the band of its own or another object counts once, as a positive.

    LD itself gives each region a term of its own, weighs the positives with the student's score, and leaves positives
    that are also in the band in both.

    Args:
        positives: booleans of any shape.
        valuable: weights of the valuable localisation region, same shape.
        quality: weights of the positives, same shape; None: 1.
        gain: factor of ``valuable``, a finite number >= 0.

    Returns:
        float32 weights of that shape.

    Raises:
        ValueError: ``gain`` is out of range.
    """
    _check_gain(gain)
    band = valuable.float() * gain
    main = torch.ones_like(band) if quality is None else quality.float()
    return torch.where(positives, main, band)


def _check_gain(gain: Any) -> None:
    if isinstance(gain, bool) or not isinstance(gain, Real) or not (math.isfinite(gain) and gain >= 0):
        raise option_error("main_and_valuable", "gain", gain, "a finite number >= 0")


@REGION_REGISTRY.register()
@label_free
def top_quality(
    source: DenseOutput, teacher: DenseOutput, assignment: Assignment, *, topk: int = 100, centerness: bool = False
) -> list[Tensor]:
    """
    Of each image the ``topk`` locations, over all levels, with the teacher's highest
    :func:`d2kd.regions.teacher_confidence`, which is their weight; those that the assignment ignores left out. With
    centerness where ``centerness`` is true and the teacher predicts it. Needs no object.
    """
    check_bool("top_quality", "centerness", centerness)
    quality = [
        level * labelled_locations(labels)
        for level, labels in zip(teacher_confidences(teacher, centerness), assignment.labels)
    ]
    # Any order of the locations will do, so that of the maps: no copy of their own.
    region = top_quality_region(torch.cat([level.flatten(1) for level in quality], dim=1), topk=topk)
    levels = region.split([level[0].numel() for level in quality], dim=1)
    return [flat.view(like.shape) for flat, like in zip(levels, quality)]


@REGION_REGISTRY.register()
def main_and_valuable(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    gain: float = 0.25,
    centerness: bool = False,
    weighting: str = "teacher_quality",
    gamma: float = 0.25,
    metric: str = "anchor_iof",
    topk: int = 9,
) -> list[Tensor]:
    """
    :func:`main_and_valuable_region` of each image. ``weighting`` is "teacher_quality":
    :func:`d2kd.regions.teacher_confidence` on the positives and ``gain`` * IoU(anchor, object) in the band, for box
    terms; or "mask": 1 and ``gain``, for classification terms. ``centerness``: as in the region teacher_quality, with
    "teacher_quality" only. ``gamma``, ``metric`` and ``topk``: see :func:`d2kd.regions.valuable_localization_region`.
    """
    region = "main_and_valuable"
    _check_gain(gain)
    check_bool(region, "centerness", centerness)
    check_choice(region, "weighting", weighting, ("teacher_quality", "mask"))
    check_fraction(region, "gamma", gamma)
    check_choice(region, "metric", metric, ("anchor_iof", "diou"))
    check_count(region, "topk", topk, 2)
    band = valuable_localization(
        source,
        teacher,
        assignment,
        gamma=gamma,
        metric=metric,
        weighting="mask" if weighting == "mask" else "iou",
        topk=topk,
    )
    quality = [None] * len(band) if weighting == "mask" else teacher_confidences(teacher, centerness)
    levels = zip(assignment.positives, band, quality)
    return [main_and_valuable_region(p, v, quality=q, gain=gain) for p, v, q in levels]
