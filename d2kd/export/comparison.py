"""Whether an exported file detects what the student does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BOX_TOLERANCE", "SCORE_TOLERANCE", "Comparison", "compare", "compare_tensors", "detect", "random_image"]

#: Largest differences that count as rounding, in pixels and in probability.
BOX_TOLERANCE = 1e-2
SCORE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """
    Detections of one image: the student's and those of an exported file, in order.

    Attributes:
        size: (H, W) of the image.
        expected: how many detections the student has.
        found: how many the file has; if that is another number, the rest is 0.
        box: largest difference of a coordinate, in pixels.
        score: largest difference of a score.
        classes: how many detections have another class.
        of: what is counted.
    """

    size: tuple[int, int]
    expected: int
    found: int
    box: float = 0.0
    score: float = 0.0
    classes: int = 0
    of: str = "detections"

    @property
    def same(self) -> bool:
        # A NaN is a difference.
        within = self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE
        return self.expected == self.found and within and self.classes == 0

    def __str__(self) -> str:
        where = f"on {self.size[0]}x{self.size[1]}"
        if self.expected != self.found:
            return f"{where}: {self.expected} {self.of} of the student, {self.found} of the file"
        return (
            f"{where}: {self.expected} {self.of}, largest difference {self.box:.3g} pixels in boxes, "
            f"{self.score:.3g} in scores, {self.classes} of other classes"
        )


def detect(detector: DenseDetector, images: Sequence[Tensor]) -> list[Instances]:
    """Detections of (C, H, W) images, in their own size."""
    with torch.no_grad():
        return [x["instances"] for x in detector([{"image": image} for image in images])]


def compare(expected: Instances, found: Instances) -> Comparison:
    """Compare detections of one image, "pred_boxes", "scores" and "pred_classes", best first; ties in any order."""
    height, width = expected.image_size
    size = (int(height), int(width))
    if len(expected) != len(found) or len(expected) == 0:
        return Comparison(size, len(expected), len(found))
    order = _pair_up(expected, found)
    return Comparison(
        size,
        len(expected),
        len(found),
        box=(expected.pred_boxes.tensor - found.pred_boxes.tensor[order]).abs().max().item(),
        score=(expected.scores - found.scores[order]).abs().max().item(),
        classes=int((expected.pred_classes != found.pred_classes[order]).sum()),
    )


def compare_tensors(expected: Sequence[Tensor], found: Sequence[Tensor], size: tuple[int, int]) -> Comparison:
    """Compare boxes (N, R, 4), as far as they are near an image of this size, and scores (N, R, K) of each location."""
    count = expected[0].shape[1]
    if [x.shape for x in expected] != [x.shape for x in found]:
        return Comparison(size, count, found[0].shape[1], classes=count, of="locations")
    near = [(x[0].clamp(min=-max(size), max=2 * max(size)), x[1]) for x in (expected, found)]
    box, score = (float((x - y).abs().max()) for x, y in zip(*near))
    return Comparison(size, count, count, box, score, of="locations")


def _pair_up(expected: Instances, found: Instances) -> Tensor:
    """(D,) indices into ``found``: its own order, except that ties are paired with the nearest box of ``expected``."""
    distance = (expected.pred_boxes.tensor[:, None] - found.pred_boxes.tensor).abs().amax(dim=-1).tolist()
    classes, found_classes = expected.pred_classes.tolist(), found.pred_classes.tolist()
    ends = (expected.scores.diff() < -SCORE_TOLERANCE).nonzero().flatten() + 1
    order: list[int] = []
    for run in torch.arange(len(expected)).tensor_split(ends):
        left = run.tolist()
        for i in run.tolist():
            *_, nearest = min((classes[i] != found_classes[j], distance[i][j], j) for j in left)
            left.remove(nearest)
            order.append(nearest)
    return torch.tensor(order)


def random_image(channels: int, size: tuple[int, int], seed: int) -> Tensor:
    """(C, H, W) values of 0 to 255 with contrasts of all sizes, so that detectors find something."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, channels, -(-size[0] // cell), -(-size[1] // cell), generator=generator), size)
        for cell in (1, 8, 32, 128)
    ]
    image = torch.stack(layers).sum(dim=0)[0]
    return ((image - image.min()) / (image.max() - image.min()) * 255).round()
