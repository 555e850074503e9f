"""Boxes of a dataset that nothing can be learnt from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from d2kd.data.reading import DatasetError

__all__ = ["box_fault", "drop_broken_boxes"]

logger = logging.getLogger(f"detectron2.{__name__}")


def drop_broken_boxes(dataset: list[dict], key: str) -> list[dict]:
    """
    Dataset dicts without boxes that are NaN or infinite, have no area (inverted ones among them), or lie outside their
    image, and without the images all of whose boxes are such: without their objects they would teach that nothing is
    there. What was left out is counted by kind in a warning.

    Args:
        dataset: Detectron2's dataset dicts; they are not changed. Boxes that are rotated or
            relative are not looked at.
        key: where the dataset stands in the config.

    Returns:
        ``dataset`` itself if nothing is to be left out.

    Raises:
        DatasetError: an annotation without "bbox" or "category_id".
        ValueError: a box that is no four numbers; all images have empty lists of annotations, or all boxes are smaller
            than a pixel; or no image would be left.
    """
    boxes = [x for item in dataset for x in item.get("annotations") or ()]
    if not boxes and any("annotations" in item for item in dataset):
        raise ValueError(
            f"{key} has {len(dataset)} images and no object: check its annotations; images to learn from without "
            "labels are dataloader.train.unlabeled."
        )
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    kept: list[dict] = []
    largest = 0.0
    for item in dataset:
        annotations = item.get("annotations") or []
        kinds = [box_fault(annotation, item) for annotation in annotations]
        for kind in filter(None, kinds):
            found[kind] += 1
            examples.setdefault(kind, str(item.get("file_name", "without a file_name")))
        if any(kinds):
            annotations = [x for x, kind in zip(annotations, kinds) if kind is None]
            if not annotations:
                found[_IMAGES] += 1
                continue
            item = {**item, "annotations": annotations}
        largest = max([largest, *(_longest_side(x) for x in annotations)])
        kept.append(item)
    if 0 < largest <= 1:
        raise ValueError(
            f"{key} has no box larger than a pixel: give pixels, COCO's [x, y, width, height], not shares of the image."
        )
    if not found:
        return dataset
    images = found.pop(_IMAGES, 0)
    told = ", ".join(f"{count} {kind} (first in {examples[kind]})" for kind, count in found.items())
    logger.warning("%s: left out %d boxes: %s; and %d images that have no others.", key, found.total(), told, images)
    if not kept:
        raise ValueError(f"{key} has no box that can be learnt from: {told}.")
    return kept


_IMAGES = "images"


def _longest_side(annotation: Mapping[str, Any]) -> float:
    """Of a box, in pixels; infinite for one that is relative or rotated."""
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return np.inf
    x0, y0, x1, y1 = annotation["bbox"]
    return max(x1, y1) if mode == BoxMode.XYWH_ABS else max(x1 - x0, y1 - y0)


def box_fault(annotation: Mapping[str, Any], item: Mapping[str, Any]) -> str | None:
    """
    Why nothing can be learnt from a box; None: it is usable, or rotated or relative, which is not looked at.

    Args:
        item: the dataset dict that the annotation is of.

    Raises:
        DatasetError: the annotation has no "bbox" or no "category_id".
        ValueError: its box is no four numbers.
    """
    for field in ("bbox", "category_id"):
        if field not in annotation:
            raise DatasetError(
                f"Annotation {annotation.get('id', 'without an id')} of {item.get('file_name', 'an image')} has no "
                f"{field!r}: add it, or remove the annotation."
            )
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return None
    try:
        box = np.asarray(annotation["bbox"])
    except ValueError:  # lists of lists of several lengths
        box = np.empty(0)
    if box.shape != (4,) or not np.issubdtype(box.dtype, np.number):
        raise ValueError(
            f"Annotation {annotation.get('id', 'without an id')} of {item.get('file_name', 'an image')} has the box "
            f"{annotation['bbox']!r}, expected four numbers."
        )
    box = box.astype(float)
    if not np.isfinite(box).all():
        return "not finite"
    x0, y0, x1, y1 = box.tolist()
    if mode == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        return "without area"
    outside = x1 <= 0 or y1 <= 0 or x0 >= item.get("width", np.inf) or y0 >= item.get("height", np.inf)
    return "outside the image" if outside else None
