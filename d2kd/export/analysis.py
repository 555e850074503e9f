"""What a detector costs: numbers of its weights and operations, and time an image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.analysis import FlopCountAnalysis
from torch import Tensor

__all__ = ["count_bytes", "count_flops", "count_parameters", "time_images"]

_WARM_UP = 3


def count_parameters(detector: DenseDetector) -> int:
    return sum(p.numel() for p in detector.parameters())


def count_bytes(detector: DenseDetector) -> int:
    """Of its weights and buffers, as a checkpoint has them."""
    return sum(x.numel() * x.element_size() for x in detector.state_dict().values())


def count_flops(detector: DenseDetector, image: Tensor) -> float:
    """Multiply-adds of one (C, H, W) image, as fvcore counts them; selection and NMS are not counted."""
    analysis = FlopCountAnalysis(detector, [{"image": image}])
    return float(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def time_images(
    runs: Mapping[str, Callable[[Tensor], object]], images: Sequence[Tensor], rounds: int
) -> dict[str, float]:
    """
    Seconds an image, the median over all images and rounds.

    What else the machine does falls on all alike: each is warmed up first, then they take turns, image by image.

    Args:
        runs: what is timed, by its name; called with one (C, H, W) image.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for run in runs.values():
            for _ in range(_WARM_UP):
                run(images[0])
        for _ in range(rounds):
            for image in images:
                for name, run in runs.items():
                    start = time.perf_counter()
                    run(image)
                    found[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}
