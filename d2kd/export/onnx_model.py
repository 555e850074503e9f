"""An ONNX file as a Detectron2 model, to be evaluated and timed, and its int8 form."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from torch import Tensor

from d2kd.export.formats import import_extra, open_session
from d2kd.export.graph import DETECTIONS, instances_of
from d2kd.export.weights import ExportError

__all__ = ["OnnxDetector", "quantize"]


class OnnxDetector:
    """
    Runs a file of ``d2kd export --to onnx`` on a CPU.

    Args:
        path: the file.
        threads: of an operator; None: those of torch.

    Attributes:
        notes: what the file says of itself, by :func:`d2kd.export.write_file`'s ``notes``.

    Raises:
        ExportError: it is no such file, or it gives locations, from which an NMS outside would make detections.
        FileNotFoundError, ImportError: see :func:`open_session`.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._session = open_session(path, threads)
        outputs = [x.name for x in self._session.get_outputs()]
        inputs = [x.name for x in self._session.get_inputs()]
        if inputs != ["images"] or outputs != list(DETECTIONS):
            raise ExportError(
                f"{path} takes {', '.join(inputs)} and gives {', '.join(outputs)}, expected images and "
                f"{', '.join(DETECTIONS)}: a file of d2kd export --to onnx, without --locations."
            )
        self._path = path
        self.notes: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """
        As of a Detectron2 model in eval mode; one image at a time, since those of a batch differ in size.

        Raises:
            ExportError: the file does not take an image.
        """
        return [{"instances": self._detect(item)} for item in batch]

    def _detect(self, item: Mapping[str, Any]) -> Any:
        image: Tensor = item["image"]
        size = (image.shape[1], image.shape[2])
        try:
            found = self._session.run(list(DETECTIONS), {"images": image[None].float().numpy()})
        except Exception as error:  # onnxruntime's own
            shape = "x".join(map(str, image.shape))
            raise ExportError(f"{self._path} fails on an image of {shape}: {' '.join(str(error).split())}") from error
        instances = instances_of([torch.from_numpy(x) for x in found], 0, size)
        return detector_postprocess(instances, item.get("height", size[0]), item.get("width", size[1]))


def quantize(source: Path, target: Path, images: Sequence[Tensor]) -> None:
    """
    Write the int8 form of an ONNX file: onnxruntime's static quantisation of its convolutions. Their inputs have a
    scale and zero point from the extremes that calibration sees, their weights a scale a channel. What is not a
    convolution (normalisation, decoding, NMS) stays as it is.

    Args:
        source: a file of :func:`d2kd.export.write_file`.
        target: written.
        images: to calibrate with, each (C, H, W) of 0 to 255.
    """
    quantization = import_extra("onnxruntime.quantization")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it proposes a step that changes nothing here: torch has folded the norms
    try:
        quantization.quantize_static(
            str(source),
            str(target),
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
    finally:
        logging.root.setLevel(level)


class _Reader:
    """What onnxruntime's calibration asks for its next input."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        self._images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image[None].float().numpy()}
