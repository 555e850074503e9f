"""COCO's annotation format, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

__all__ = ["coco_json"]


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
