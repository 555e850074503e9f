"""From a model and an image to its sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from d2kd.engine.evaluation import teacher_predictor
from d2kd.engine.sheet.boxes import Box, mark
from d2kd.engine.sheet.drawing import draw_sheet
from d2kd.engine.sheet.step import StepView
from d2kd.modeling import DistilledDetector

__all__ = ["LEAST_SCORE", "make_sheet"]

Detector = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]

#: Detections below it are not drawn, nor more than so many on an image.
LEAST_SCORE, _MOST = 0.3, 30


@torch.no_grad()
def make_sheet(
    model: DistilledDetector,
    item: Mapping[str, Any],
    view: StepView,
    *,
    names: Sequence[str] | None,
    title: str,
    alone: Detector | None = None,
) -> Image.Image:
    """
    The image with its labels, with what the teacher, the student ``alone`` and the distilled student detect, and the
    maps of :func:`d2kd.engine.sheet.look_at_step`.

    Args:
        model: with its teacher; its mode and weights stay as they are.
        item: as for :func:`look_at_step`.
        names: of the student's classes; None: their numbers.
        title: of the sheet.
        alone: another detector to be shown, of the student's classes.
    """
    image = item["image"].cpu()
    pixels = (image if model.input_format == "RGB" else image.flip(0)).permute(1, 2, 0).numpy().astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    truth = _labels(item, names)
    detectors: dict[str, Detector] = {"teacher": teacher_predictor(model)}
    if alone is not None:
        detectors["student alone"] = alone
    detectors["student" if alone is None else "student, distilled"] = model.twin().eval()
    plain = {"image": item["image"], "height": image.shape[-2], "width": image.shape[-1]}
    columns: dict[str, Sequence[Box]] = {"labels" if "instances" in item else "no labels": truth}
    for name, detector in detectors.items():
        found = _detections(detector([plain])[0]["instances"].to("cpu"), names)
        columns[name if found else f"{name}: nothing"] = mark(found, truth) if "instances" in item else found
    return draw_sheet(pixels, columns, view, title, legend=f"detections with scores of {LEAST_SCORE} or more")


def _labels(item: Mapping[str, Any], names: Sequence[str] | None) -> list[Box]:
    if "instances" not in item:
        return []
    instances = item["instances"]
    rows = zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist())
    return [Box(tuple(xyxy), _name(label, names)) for xyxy, label in rows]


def _detections(instances: Any, names: Sequence[str] | None) -> list[Box]:
    rows = zip(instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist(), instances.scores.tolist())
    best = sorted((row for row in rows if row[2] >= LEAST_SCORE), key=lambda row: -row[2])[:_MOST]
    return [Box(tuple(xyxy), _name(label, names), score) for xyxy, label, score in best]


def _name(label: int, names: Sequence[str] | None) -> str:
    return names[label] if names else str(label)
