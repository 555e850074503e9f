"""Three small photographs with boxes, in the files of each format. Not a test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["CLASSES", "FORMATS", "write_images", "write_labelled"]

CLASSES = ["heron", "tern"]
FORMATS = ("coco", "yolo", "voc")
#: Of each image: its width and height, and (class id, x0, y0, x1, y1) of its boxes.
SCENES = {
    "a.jpg": ((64, 48), [(0, 8, 8, 24, 40), (1, 30, 10, 50, 30)]),
    "b.jpg": ((48, 64), [(1, 0, 0, 48, 32)]),
    "c.jpg": ((64, 64), [(0, 16, 16, 32, 32)]),
}


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, ((width, height), _) in SCENES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)


def write_labelled(format: str, folder: Path) -> tuple[Path, Path]:
    """Write ``images`` and their labels into ``folder``; returns the paths that ``d2kd init`` takes."""
    write_images(folder / "images")
    return folder / "images", {"coco": _coco, "yolo": _yolo, "voc": _voc}[format](folder)


def _coco(folder: Path) -> Path:
    """Ids that are not numbered from 1, as in COCO itself."""
    images, annotations = [], []
    for image_id, (name, ((width, height), boxes)) in enumerate(SCENES.items(), start=5):
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for label, x0, y0, x1, y1 in boxes:
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": [3, 17][label], **box})
    categories = [{"id": 17, "name": CLASSES[1]}, {"id": 3, "name": CLASSES[0]}]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def _yolo(folder: Path) -> Path:
    labels = folder / "labels"
    labels.mkdir()
    (labels / "classes.txt").write_text("\n".join(CLASSES))
    for name, ((width, height), boxes) in SCENES.items():
        lines = [
            f"{label} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}"
            for label, x0, y0, x1, y1 in boxes
        ]
        (labels / name).with_suffix(".txt").write_text("\n".join(lines))
    return labels


def _voc(folder: Path) -> Path:
    labels = folder / "labels"
    labels.mkdir()
    for name, (_, boxes) in SCENES.items():
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for label, x0, y0, x1, y1 in boxes
        )
        (labels / name).with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")
    return labels
