"""What a dataset holds: its images, its boxes, and what is wrong with them."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode
from PIL import ExifTags, Image, UnidentifiedImageError

from d2kd.data.annotations import box_fault
from d2kd.data.images import upright_size

__all__ = ["Survey", "survey"]


@dataclass(frozen=True, eq=False)
class Survey:
    """
    Attributes:
        sizes: (images, 2): width and height in pixels, the camera's rotation applied.
        boxes: (N, 4): x0, y0, x1 and y1 in pixels of the boxes that are learnt from, clipped to their image.
        labels: (N,): their class ids.
        of_image: (N,): the row of ``sizes`` that each is in.
        empty: how many images have no box at all.
        crowds: regions of many objects (COCO's ``iscrowd``), which are not learnt from.
        difficult: how many of ``boxes`` their labels mark so.
        over_edge: how many of ``boxes`` reached over the edge.
        broken: how many further boxes are useless, by kind, and the file of the first.
        grey, turned: how many images have no colour, or are rotated by their EXIF.
        digests: of the images' files: equal files have equal ones.
    """

    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    of_image: np.ndarray
    empty: int
    crowds: int
    difficult: int
    over_edge: int
    broken: Mapping[str, tuple[int, str]]
    grey: int
    turned: int
    digests: Sequence[bytes]

    @property
    def box_sizes(self) -> np.ndarray:
        """(N,): the square root of each box's area, in pixels."""
        return np.sqrt((self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1]))

    @property
    def shares(self) -> np.ndarray:
        """(N,): ``box_sizes`` as a share of the short side of each box's image."""
        return self.box_sizes / self.sizes[self.of_image].min(axis=1)


def survey(dataset: Sequence[Mapping[str, Any]]) -> Survey:
    """
    Look at all images and boxes of a dataset. Every image is decoded.

    Args:
        dataset: Detectron2's dataset dicts, with absolute boxes.

    Raises:
        ValueError: images that cannot be trained on, counted by kind; an annotation without a box or class.
    """
    unreadable, broken = _Kinds(), _Kinds()
    boxes: list[list[float]] = []
    labels: list[int] = []
    of_image: list[int] = []
    looks: list[_Look] = []
    empty = crowds = difficult = over_edge = 0
    for index, item in enumerate(dataset):
        looks.append(_look_at(item))
        unreadable.add(looks[-1].fault, item)
        annotations = item["annotations"]
        empty += not annotations
        for annotation in annotations:
            fault = box_fault(annotation, item)
            broken.add(fault, item)
            if fault or annotation.get("iscrowd", 0):
                crowds += not fault
                continue
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            limits = [item["width"], item["height"]] * 2
            clipped = [min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits)]
            over_edge += any(abs(a - b) > 1 for a, b in zip(box, clipped))  # a pixel: tools that count from 1
            boxes.append(clipped)
            difficult += annotation.get("difficult", False)
            labels.append(annotation["category_id"])
            of_image.append(index)
    if unreadable.counts:
        raise ValueError(
            f"{unreadable.counts.total()} of {len(dataset)} images cannot be trained on: {unreadable}: mend them, or "
            "leave them and their labels out."
        )
    return Survey(
        sizes=np.array([[item["width"], item["height"]] for item in dataset]),
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        labels=np.array(labels, dtype=int),
        of_image=np.array(of_image, dtype=int),
        empty=empty,
        crowds=crowds,
        difficult=difficult,
        over_edge=over_edge,
        broken={kind: (count, broken.first[kind]) for kind, count in broken.counts.items()},
        grey=sum(look.grey for look in looks),
        turned=sum(look.turned for look in looks),
        digests=[look.digest for look in looks],
    )


class _Kinds:
    """Counts by kind, and the file of the first of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str | None, item: Mapping[str, Any]) -> None:
        if kind is not None:
            self.counts[kind] += 1
            self.first.setdefault(kind, str(item["file_name"]))

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind} (first {self.first[kind]})" for kind, count in self.counts.items())


class _Look(NamedTuple):
    """Why an image cannot be trained on, or None; whether it is grey; whether its EXIF rotates it; of its file."""

    fault: str | None
    grey: bool = False
    turned: bool = False
    digest: bytes = b""


def _look_at(item: Mapping[str, Any]) -> _Look:
    try:
        content = Path(item["file_name"]).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return _Look("missing")
    except OSError:
        return _Look("that cannot be opened")
    try:
        with Image.open(io.BytesIO(content)) as image:
            size, mode = upright_size(image), image.mode
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            if turned and image.format == "TIFF":
                return _Look("that a TIFF's tag rotates, which Pillow and Detectron2 would both do")
            image.draft("RGB", (size[0] // 8, size[1] // 8))  # of a JPEG: every byte is read, few pixels are computed
            image.load()
    except UnidentifiedImageError:
        return _Look("that are no images")
    except Image.DecompressionBombError:
        return _Look("with more pixels than Pillow reads")
    except Exception:  # Pillow's readers of formats raise many kinds
        return _Look("cut or damaged")
    if mode.startswith(("I", "F")):
        return _Look("with more than 8 bits a channel")
    if size != (item["width"], item["height"]):
        return _Look("of another size than their labels state")
    return _Look(None, mode in ("1", "L", "LA"), turned, hashlib.blake2b(content, digest_size=16).digest())
