"""Writing the student in a format, kept only if the file detects what the student does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor
from torchvision.ops import box_iou

from d2kd.checkpoint import whole_file
from d2kd.export.comparison import Comparison, compare, compare_tensors, detect, random_image
from d2kd.export.formats import OPSET, Runner, load_format, write_format
from d2kd.export.graph import DETECTIONS, DetectionGraph, instances_of
from d2kd.export.onnx_model import quantize
from d2kd.export.weights import ExportError
from d2kd.modeling.detectors.interface import pixel_statistics

__all__ = ["Proof", "random_images", "write_file", "write_int8"]

#: Of the student's detections, the share that an int8 file must find.
_LEAST = 0.5


@dataclass(frozen=True)
class Proof:
    """
    Comparisons of an exported file with the student.

    Attributes:
        images: on each image that the student detects something in.
        other_size: on an image of another size; None if the file fails there.
        batch: the worse of two images in a batch; None if the file fails there.
    """

    images: Sequence[Comparison]
    other_size: Comparison | None
    batch: Comparison | None

    @property
    def worst(self) -> Comparison:
        return max(self.images, key=lambda x: (x.box, x.score))

    @property
    def any_size(self) -> bool:
        return self.other_size is not None and self.other_size.same

    @property
    def any_batch(self) -> bool:
        return self.batch is not None and self.batch.same


def random_images(detector: DenseDetector) -> list[Tensor]:
    """
    Random images, (C, H, W) of 0 to 255, of which the first has detections.

    Raises:
        ExportError: the detector finds nothing in five of them.
    """
    square = detector.backbone.padding_constraints.get("square_size", 0)
    size = (min(320, square), min(416, square)) if square else (320, 416)
    for seed in range(5):
        image = random_image(pixel_statistics(detector)[0].numel(), size, seed)
        if len(detect(detector, [image])[0]):
            return [image]
    raise ExportError(
        "The student detects nothing in random images, so that comparing the exported file with it would prove "
        "nothing: give images with objects (--images PATH)."
    )


def write_file(
    detector: DenseDetector,
    path: str | Path,
    kind: str,
    images: Sequence[Tensor],
    *,
    locations: bool = False,
    opset: int = OPSET,
    notes: Mapping[str, str] | None = None,
) -> Proof:
    """
    Write the student's :class:`DetectionGraph` in a format, and compare the written file with the student.

    Args:
        detector: on the CPU, in eval mode.
        path: replaced if it exists, whole or not at all.
        kind: one of :data:`d2kd.export.formats.FORMATS`.
        images: to compare on, each (C, H, W) of 0 to 255.
        locations: see :class:`DetectionGraph`.
        opset, notes: of an ONNX file.

    Raises:
        ExportError: the student cannot be traced, the file differs on one of ``images`` (the message says by how much),
            or the student detects nothing in them; nothing was written.
        ImportError: a package that the format needs is not installed.
    """
    images = [image.float() for image in images]
    with_objects = [image for image, found in zip(images, detect_each(detector, images)) if found]
    if not with_objects:
        sizes = ", ".join(sorted({f"{x.shape[1]}x{x.shape[2]}" for x in images}))
        raise ExportError(
            f"The student detects nothing in the {len(images)} images to compare on ({sizes}), which would prove "
            "nothing, and nothing was written: give images with objects (--images PATH), or a lower test_score_thresh."
        )
    graph = DetectionGraph(detector, locations=locations).eval()
    first = with_objects[0]
    with whole_file(path) as partial:
        # torch.export takes a batch of one for a batch that is always one; a trace of one serves a detector whose code
        # fixes the number.
        example = torch.stack([first, first.flip(2)] if kind == "exported_program" else [first])
        write_format(kind, graph, example, partial, opset=opset, notes=notes or {})
        check = _Check(graph, load_format(kind, partial, graph.outputs))
        # The first once more: TorchScript optimises a model after its first runs.
        compared = [comparison for image in [*with_objects, first] for comparison in check(image)]
        for comparison in compared:
            if not comparison.same:
                raise ExportError(
                    f"The exported {type(detector).__name__} is not the student, nothing was written; {comparison}."
                )
        return Proof(compared, check.try_on(_of_another_size(detector, first)), check.try_on(first, first.flip(2)))


def detect_each(detector: DenseDetector, images: Sequence[Tensor]) -> list[int]:
    """How many detections each image has."""
    return [len(detect(detector, [image])[0]) for image in images]


def write_int8(
    detector: DenseDetector, source: Path, path: str | Path, images: Sequence[Tensor], calibration: Sequence[Tensor]
) -> float:
    """
    Quantise an ONNX file of :func:`write_file` to int8, and look what it still finds.

    Args:
        detector: the student that the file was written of.
        source: the file.
        path: replaced if it exists, whole or not at all.
        images: to compare on, each (C, H, W) of 0 to 255.
        calibration: images to calibrate with.

    Returns:
        of the student's detections, the share of which the file has one of the same class with an IoU of 0.5 or more.

    Raises:
        ExportError: less than half; nothing was written.
        ImportError: onnxruntime is not installed.
    """
    total = found = 0
    with whole_file(path) as partial:
        quantize(source, partial, calibration)
        run = load_format("onnx", partial, DETECTIONS)
        for image in images:
            expected = detect(detector, [image])[0]
            got = instances_of(run(image.float()[None]), 0, expected.image_size)
            overlaps = box_iou(expected.pred_boxes.tensor, got.pred_boxes.tensor)
            same = expected.pred_classes[:, None] == got.pred_classes
            total += len(expected)
            found += int(((overlaps >= 0.5) & same).any(dim=1).sum())
        if found < _LEAST * total:
            raise ExportError(
                f"The int8 file finds {found} of the student's {total} detections, and nothing was written: calibrate "
                "with more images (--int8 N), or deploy without int8."
            )
    return found / total


class _Check:
    """Runs images through a file and through the student."""

    def __init__(self, graph: DetectionGraph, file: Runner) -> None:
        self._graph, self._file = graph, file

    def __call__(self, *images: Tensor) -> list[Comparison]:
        """A comparison an image of a batch; of locations, the student's detections are compared with the graph's."""
        size = (images[0].shape[1], images[0].shape[2])
        batch = torch.stack(images)
        with torch.no_grad():
            found = self._file(batch)
            more = []
            if self._graph.locations:
                more = [compare_tensors(self._graph(batch), found, size)]
                found = DetectionGraph(self._graph.detector)(batch)
        expected = detect(self._graph.detector, images)
        return [*(compare(each, instances_of(found, i, size)) for i, each in enumerate(expected)), *more]

    def try_on(self, *images: Tensor) -> Comparison | None:
        """The worst comparison; None if the file fails."""
        try:
            return min(self(*images), key=lambda x: (x.same, -x.box, -x.score))
        except Exception:  # of each runtime its own, for a shape that tracing has fixed
            return None


def _of_another_size(detector: DenseDetector, image: Tensor) -> Tensor:
    """Of another aspect ratio, and higher than the image where the detector takes that."""
    height, width = image.shape[1:]
    square = detector.backbone.padding_constraints.get("square_size", 0)
    higher = torch.cat([image, image[:, : height // 2]], dim=1)
    if square and higher.shape[1] > square:
        higher = image[:, : -(-height * 3 // 4)]
    return higher[:, :, : -(-width * 2 // 3)].contiguous()
