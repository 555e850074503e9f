"""COCO's annotation format, read and written."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from d2kd.data.reading import DatasetError, coco_content

__all__ = ["category_names", "coco_json", "read_coco"]

logger = logging.getLogger(f"detectron2.{__name__}")


def read_coco(
    path: str | Path, images: str | Path, classes: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[int | float | str, int]]:
    """
    The images of a COCO file as Detectron2 dataset dicts, by their ids. Only boxes are read: Detectron2's
    ``load_coco_json`` leaves out an object whose outline is empty, and takes the classes in the order of their ids. An
    object that the file says to ignore has ``"difficult": True``.

    Args:
        path: the json file.
        images: the folder of the images.
        classes: names by class id; the file's categories are found by name.

    Returns:
        the dataset dicts, and the file's category id -> class id.

    Raises:
        OSError: the file cannot be opened.
        DatasetError: it is not of COCO's format, or has a category that is not in ``classes``.
    """
    content = coco_content(path)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    if unknown := [name for name in names.values() if name not in classes]:
        raise DatasetError(f"{path} has the category {unknown[0]!r}, expected one of {', '.join(map(repr, classes))}.")
    numbers = {own: classes.index(name) for own, name in names.items()}
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    unlisted = 0
    for found in content["annotations"]:
        if found["image_id"] not in by_image:
            unlisted += 1
            continue
        annotation = {
            "id": found["id"],
            "bbox": found["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": numbers[found["category_id"]],
            "iscrowd": int(found.get("iscrowd") or 0),
        }
        if found.get("ignore"):
            annotation["difficult"] = True
        by_image[found["image_id"]].append(annotation)
    if unlisted:
        logger.warning("%s has %d annotations of images that it does not list: left out.", path, unlisted)
    dataset = [
        {
            "file_name": os.path.join(images, image["file_name"]),
            "width": image["width"],
            "height": image["height"],
            "image_id": image["id"],
            "annotations": by_image[image["id"]],
        }
        for image in sorted(content["images"], key=itemgetter("id"))
    ]
    return dataset, numbers


def category_names(path: str | Path) -> list[str]:
    """
    The names of a COCO file's categories, by their ids.

    Raises:
        OSError, DatasetError: see :func:`read_coco`.
    """
    return [str(category["name"]) for category in sorted(coco_content(path)["categories"], key=itemgetter("id"))]


def coco_json(dataset: Sequence[dict], classes: Sequence[str], description: str) -> dict[str, Any]:
    """
    The content of a COCO annotation file. Images, annotations and categories are numbered from 1; boxes are rounded to
    a hundredth of a pixel. (Detectron2's ``convert_to_coco_json`` needs a registered dataset, numbers categories from 0
    and writes the date, so no two of its files are equal.)

    Args:
        dataset: Detectron2's dataset dicts with absolute boxes; of "file_name" the name is written, without folders.
        classes: names by class id.
        description: of the data.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, item in enumerate(dataset, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": Path(item["file_name"]).name,
                "width": item["width"],
                "height": item["height"],
            }
        )
        for annotation in item["annotations"]:
            boxes = np.array([annotation["bbox"]], dtype=float)  # of a list, Detectron2 makes float32
            box = np.ravel(BoxMode.convert(boxes, annotation["bbox_mode"], BoxMode.XYWH_ABS))
            x, y, width, height = (round(value, 2) for value in box.tolist())
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": annotation["category_id"] + 1,
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": annotation["iscrowd"],
                }
            )
    return {
        "info": {"description": description},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }
