"""Boxes of a dataset that nothing can be learnt from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

__all__ = ["drop_broken_boxes"]

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
        ValueError: an annotation without "bbox" or "category_id", or with a box that is no four numbers; or no image
            would be left.
    """
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    kept: list[dict] = []
    for item in dataset:
        annotations = item.get("annotations") or []
        kinds = [_what_is_wrong(annotation, item) for annotation in annotations]
        for kind in filter(None, kinds):
            found[kind] += 1
            examples.setdefault(kind, str(item.get("file_name", "without a file_name")))
        if any(kinds):
            annotations = [x for x, kind in zip(annotations, kinds) if kind is None]
            if not annotations:
                found[_IMAGES] += 1
                continue
            item = {**item, "annotations": annotations}
        kept.append(item)
    if not found:
        return dataset
    images = found.pop(_IMAGES, 0)
    told = ", ".join(f"{count} {kind} (first in {examples[kind]})" for kind, count in found.items())
    logger.warning("%s: left out %d boxes: %s; and %d images that have no others.", key, found.total(), told, images)
    if not kept:
        raise ValueError(f"{key} has no box that can be learnt from: {told}.")
    return kept


_IMAGES = "images"


def _what_is_wrong(annotation: Mapping[str, Any], item: Mapping[str, Any]) -> str | None:
    for field in ("bbox", "category_id"):
        if field not in annotation:
            raise ValueError(
                f"Annotation {annotation.get('id', 'without an id')} of {item.get('file_name', 'an image')} has no "
                f"{field!r}: add it, or remove the annotation."
            )
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return None
    try:
        box = np.asarray(annotation["bbox"], dtype=float)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (4,):
        raise ValueError(
            f"Annotation {annotation.get('id', 'without an id')} of {item.get('file_name', 'an image')} has the box "
            f"{annotation['bbox']!r}, expected four numbers."
        )
    if not np.isfinite(box).all():
        return "not finite"
    x0, y0, x1, y1 = box.tolist()
    if mode == BoxMode.XYWH_ABS:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        return "without area"
    outside = x1 <= 0 or y1 <= 0 or x0 >= item.get("width", np.inf) or y0 >= item.get("height", np.inf)
    return "outside the image" if outside else None
