"""YOLO's text files: for each object a line ``class x y width height``, in shares of the image's width and height."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from detectron2.structures import BoxMode

from d2kd.data.images import image_size

__all__ = ["name_files", "read_yolo", "yolo_names"]

_ROUNDING = 1e-3  # of the tools that wrote the file
#: Where YOLO's tools keep the names of classes: in the folder of the labels, or above it.
_NAMES = ("classes.txt", "obj.names", "*.yaml", "*.yml")


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
    for number, line in enumerate(Path(path).read_text("utf-8-sig", errors="replace").splitlines(), start=1):
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


def name_files(folder: Path) -> set[Path]:
    """The files in a folder that may have the names of classes."""
    return {path for pattern in _NAMES for path in folder.glob(pattern)}


def yolo_names(labels: Path) -> list[str]:
    """
    The names of classes that a file in the folder of the labels has, or in the two folders above: ``classes.txt``,
    ``obj.names``, or ``names`` of a ``.yaml``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not in UTF-8, or has an empty line between the names.
    """
    for folder in (labels, *labels.resolve().parents[:2]):
        for file in (path for pattern in _NAMES for path in sorted(folder.glob(pattern))):
            try:
                text = file.read_text("utf-8-sig").rstrip()
            except UnicodeDecodeError as error:
                if file.suffix in (".yaml", ".yml"):  # one of another purpose, perhaps
                    continue
                raise ValueError(f"{file}, the names of the classes, is not in UTF-8: convert it.") from error
            if file.suffix in (".yaml", ".yml"):
                names = _names_of_yaml(text)
            else:
                names = [line.strip() for line in text.splitlines()]
                if "" in names:
                    raise ValueError(f"{file} has an empty line between the names of classes: delete it.")
            if names:
                return names
    raise FileNotFoundError(
        f"{labels} and the folders above it have no names of classes: write them into {labels / 'classes.txt'}, a name "
        "a line, in the order of the class ids."
    )


def _names_of_yaml(text: str) -> list[str]:
    """Its ``names``, a list or a mapping from class ids; [] if there are none."""
    try:
        content = yaml.load(text, yaml.BaseLoader)  # which leaves a class that is named "no" as it is
    except yaml.YAMLError:
        return []
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
