"""A TorchScript model of the student, written only if it detects the same as the student."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from d2kd.checkpoint import whole_file
from d2kd.export.weights import ExportError

__all__ = [
    "BOX_TOLERANCE",
    "OUTPUTS",
    "SCORE_TOLERANCE",
    "Comparison",
    "Proof",
    "compare",
    "random_image",
    "write_torchscript",
]

#: Largest differences that count as rounding, in pixels and in probability (on a CPU there is usually none).
BOX_TOLERANCE = 1e-2
SCORE_TOLERANCE = 1e-5

#: Outputs of the traced model, in this order.
OUTPUTS = ("pred_boxes", "pred_classes", "scores", "image_size")


@dataclass(frozen=True)
class Comparison:
    """
    Detections of one image: the student's and those of its traced copy, in order.

    Attributes:
        size: (H, W) of the image.
        expected: how many detections the student has.
        found: how many the copy has; if that is another number, the rest is 0.
        box: largest difference of a coordinate, in pixels.
        score: largest difference of a score.
        classes: how many detections have another class.
    """

    size: tuple[int, int]
    expected: int
    found: int
    box: float = 0.0
    score: float = 0.0
    classes: int = 0

    @property
    def same(self) -> bool:
        # A NaN is a difference.
        within = self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE
        return self.expected == self.found and within and self.classes == 0

    def __str__(self) -> str:
        where = f"on {self.size[0]}x{self.size[1]}"
        if self.expected != self.found:
            return f"{where}: {self.expected} detections of the student, {self.found} of the traced model"
        return (
            f"{where}: {self.expected} detections, largest difference {self.box:.3g} pixels in boxes, "
            f"{self.score:.3g} in scores, {self.classes} of other classes"
        )


@dataclass(frozen=True)
class Proof:
    """
    Comparisons of a traced model with the student.

    Attributes:
        image: on the image that it was traced with: the worse of two, since TorchScript optimises a model after its
            first run.
        other_size: on an image of another size; None if the traced model fails there.
    """

    image: Comparison
    other_size: Comparison | None

    @property
    def any_size(self) -> bool:
        return self.other_size is not None and self.other_size.same


def _detect(detector: DenseDetector, image: Tensor) -> Instances:
    with torch.no_grad():
        return detector([{"image": image}])[0]["instances"]


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


def _image_with_detections(detector: DenseDetector) -> Tensor:
    square = detector.backbone.padding_constraints.get("square_size", 0)
    size = (min(320, square), min(416, square)) if square else (320, 416)
    for seed in range(5):
        image = random_image(detector.get_buffer("pixel_mean").numel(), size, seed)
        if len(_detect(detector, image)):
            return image
    raise ExportError(
        "The student detects nothing in random images, so that comparing the traced model with it would prove "
        "nothing: give an image with objects (--image PATH)."
    )


def _trace(detector: DenseDetector, image: Tensor) -> tuple[torch.jit.ScriptModule, TracingAdapter]:
    adapter = TracingAdapter(detector, [{"image": image}])
    try:
        return torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False), adapter
    except Exception as error:  # the detector's own code can raise anything
        found = f"{type(error).__name__}: {error}"
        raise ExportError(f"{type(detector).__name__} cannot be traced, nothing was written: {found}") from error


def write_torchscript(detector: DenseDetector, path: str | Path, image: Tensor | None = None) -> Proof:
    """
    Trace the student with Detectron2's ``TracingAdapter``, write it, and compare the written model with the student.

    The model takes one image, (C, H, W) of 0 to 255 in the student's channel order, and returns :data:`OUTPUTS`:
    (D, 4) absolute x1, y1, x2, y2, (D,) classes, (D,) scores, and (H, W). Thresholds are those of the config.

    Args:
        detector: on the CPU, in eval mode.
        path: replaced if it exists, whole or not at all.
        image: to compare on, (C, H, W) of 0 to 255; None: a random one in which something is detected.

    Raises:
        ExportError: the student cannot be traced, the traced model differs on ``image`` (the message says by how much),
            or the student detects nothing there; nothing was written.
    """
    with whole_file(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the comparisons show what it warns of
        warnings.simplefilter("ignore", FutureWarning)  # that TorchScript is deprecated: see docs/embedding.md
        warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # in Detectron2's anchors
        if image is None:
            image = _image_with_detections(detector)
        height, width = image.shape[-2:]
        part = image[:, : -(-height * 3 // 4), : -(-width * 2 // 3)].contiguous()  # of another aspect ratio, too
        traced, adapter = _trace(detector, image)
        with open(partial, "wb") as file:
            torch.jit.save(traced, file)
        written = torch.jit.load(partial)

        def compare_on(x: Tensor) -> Comparison:
            return compare(_detect(detector, x), adapter.outputs_schema(written(x))[0]["instances"])

        first = compare_on(image)
        try:
            other_size = compare_on(part)
        except RuntimeError:  # TorchScript's for a shape that tracing has fixed
            other_size = None
        again = compare_on(image)
        for comparison in (first, again):
            if not comparison.same:
                raise ExportError(
                    f"The traced {type(detector).__name__} is not the student, nothing was written; {comparison}."
                )
        if first.expected == 0:
            raise ExportError(
                f"The student detects nothing in this image of {height}x{width}, so that comparing the traced model "
                "with it proves nothing, and nothing was written: give another image."
            )
    return Proof(max(first, again, key=lambda x: (x.box, x.score)), other_size)
