"""YOLO's text files: for each object a line ``class x y width height``, in shares of the image's width and height."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from d2kd.data.images import image_size

__all__ = ["read_yolo"]

_ROUNDING = 1e-3  # of the tools that wrote the file


def read_yolo(path: str | Path, image: str | Path, num_classes: int) -> dict[str, Any]:
    """
    One image and its text file as a Detectron2 dataset dict without "image_id". An empty file: no objects.

    Args:
        path: the text file.
        image: the image file.
        num_classes: class ids are from 0 to ``num_classes - 1``.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: a line that is not five numbers (as those of outlines are not), a class id outside its range, or a
            box whose centre or size is no share of the image.
    """
    width, height = image_size(image)
    annotations = []
    for number, line in enumerate(Path(path).read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            class_id, x, y, w, h = (float(value) for value in line.split())
        except ValueError as error:
            raise ValueError(
                f"{path}: line {number} is {line.strip()[:60]!r}, expected five numbers: class, centre x and y, width "
                "and height."
            ) from error
        if class_id not in range(num_classes):
            raise ValueError(f"{path}: line {number} has the class {class_id:g}, expected 0 to {num_classes - 1}.")
        if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in (x, y, w, h)):
            raise ValueError(
                f"{path}: line {number} has the box {[x, y, w, h]}, expected numbers from 0 to 1, shares of the "
                "image's width and height."
            )
        box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        annotations.append({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(class_id), "iscrowd": 0})
    return {"file_name": str(image), "width": width, "height": height, "annotations": annotations}
