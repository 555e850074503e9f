"""What `d2kd init` chooses for a dataset, and why: input size, strides, anchors, batch and schedule."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from d2kd.data.survey import Survey

__all__ = ["Choices", "choose"]

_SMALLEST, _LARGEST = 160, 800  # of the short side
_LONGEST = 2.4  # long side by short, from which on images of the largest short side would be too many pixels
_WANTED = 24  # pixels that the smallest tenth of the boxes should have: three cells of stride 8
_BYTES = 2000  # that a pixel of the batch costs a training step; measured, ResNet-50 with GFL: 1400
_SAMPLES = (8_000, 1_440_000)  # of images that a training sees: few, and Detectron2's 1x schedule of COCO
_EPOCHS = 36


@dataclass(frozen=True)
class Choices:
    """
    Attributes:
        short_side: in pixels, in evaluation.
        max_size: of the long side.
        size_reason: a sentence's end; likewise the other reasons.
        strides: of the levels, from 8 or 16 to 32, 64 or 128.
        ratios: height by width of RetinaNet's anchors.
        batch: images an iteration.
        iterations: of each training.
        device: "cuda" or "cpu".
    """

    short_side: int
    max_size: int
    size_reason: str
    strides: tuple[int, ...]
    strides_reason: str
    ratios: tuple[float, ...]
    ratios_reason: str
    batch: int
    batch_reason: str
    iterations: int
    iterations_reason: str
    device: str


def choose(found: Survey) -> Choices:
    """
    Args:
        found: of the training images; with boxes.
    """
    short_sides = found.sizes.min(axis=1)
    median = int(np.median(short_sides))
    tenth = float(np.quantile(found.shares, 0.1))
    wanted = _WANTED / tenth
    long_by_short = float(np.quantile(found.sizes.max(axis=1) / short_sides, 0.95))
    largest = _LARGEST * min(1.0, float(np.sqrt(_LONGEST / long_by_short)))
    short_side = _rounded(min(max(wanted, _SMALLEST), median, largest))
    smallest = tenth * short_side
    size_reason = f"the smallest tenth of the boxes is up to {smallest:.0f} pixels then"
    if wanted > short_side:
        limit = "the images are no larger" if median < largest else "more would be slow"
        size_reason += f"; {_WANTED} would be better, but {limit}"
    low, high = (float(x) * short_side for x in np.quantile(found.shares, (0.05, 0.95)))
    # RetinaNet's anchors are 4 to 8 times the stride, GFL's and ATSS's 8 times; FCOS's levels take larger boxes, too.
    finest = 8 if low < 64 else 16
    coarsest = next((stride for stride in (32, 64) if high <= 8 * stride), 128)
    strides = tuple(2**i for i in range(finest.bit_length() - 1, coarsest.bit_length()))
    heights, widths = (found.boxes[:, i + 2] - found.boxes[:, i] for i in (1, 0))
    narrow, middle, tall = (float(x) for x in np.quantile(heights / widths, (0.1, 0.5, 0.9)))
    square = narrow > 0.67 and tall < 1.5
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, batch_reason = _batch(len(found.sizes), short_side**2 * long_by_short, device)
    samples = min(max(_EPOCHS * len(found.sizes), _SAMPLES[0]), _SAMPLES[1])
    iterations = max(100, round(samples / batch, -2))
    return Choices(
        short_side=short_side,
        max_size=_rounded(short_side * long_by_short * 1.2),
        size_reason=size_reason,
        strides=strides,
        strides_reason=f"nine tenths of the boxes are {low:.0f} to {high:.0f} pixels at that size",
        ratios=(1.0,) if square else tuple(round(x, 2) for x in (narrow, middle, tall)),
        ratios_reason="a tenth, a half and nine tenths of the boxes are narrower (height by width)",
        batch=batch,
        batch_reason=batch_reason,
        iterations=int(iterations),
        iterations_reason=f"{iterations * batch / len(found.sizes):.0f} times each of the {len(found.sizes)} images",
        device=device,
    )


def _batch(images: int, pixels: float, device: str) -> tuple[int, str]:
    """Images an iteration, a power of two, and what limits it."""
    if device == "cuda":
        memory = torch.cuda.mem_get_info()[1]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = {
        f"half of this machine's {memory / 2**30:.0f} GiB": 0.5 * memory / (_BYTES * pixels),
        f"{images} images, 16 iterations an epoch": images / 16,
        "more is slow on a CPU" if device == "cpu" else "more needs another learning rate": 4
        if device == "cpu"
        else 16,
    }
    reason, most = min(limits.items(), key=lambda each: each[1])
    return max(2, 2 ** int(np.log2(max(most, 1)))), reason


def _rounded(pixels: float) -> int:
    """To a multiple of the coarsest stride of the backbones."""
    return max(32, 32 * round(pixels / 32))
