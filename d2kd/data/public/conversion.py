"""From the repository of a public data set to COCO files of small images, and whether a folder holds them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from d2kd.data.coco import coco_json
from d2kd.data.images import image_size
from d2kd.data.public.sets import SPLITS, PublicSet
from d2kd.data.voc import read_voc
from d2kd.data.yolo import read_yolo

__all__ = ["LONG_SIDE", "convert", "copy_converted", "find_fault", "repository_in"]

LONG_SIDE = 320  # pixels
_QUALITY = 90  # of the JPEG files
#: Percent of the hash below which an image is of the split.
_SHARES = {"train": 60, "val": 75, "test": 100}


def convert(public_set: PublicSet, source: Path, target: Path) -> None:
    """
    Write the data set into the folder ``target``: images scaled to :data:`LONG_SIDE`, boxes clipped to them, boxes
    under one pixel left out, splits by a hash of the image's name.

    Args:
        source: the unpacked repository.

    Raises:
        ValueError: the source's images or labels are not those of the commit.
        FileNotFoundError: a file is missing.
    """
    pairs = _pairs(public_set, source)
    if _checksum(source, [image for image, _ in pairs]) != public_set.images_sha256:
        raise ValueError(
            f"The images in {source} are not those of {public_set.origin}: some were altered, are missing or are new."
        )
    datasets: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        (target / split / "images").mkdir(parents=True)
    for image, labels in pairs:
        if public_set.labels == ".xml":
            item = read_voc(labels, image, public_set.classes)
        else:
            item = read_yolo(labels, image, len(public_set.classes))
        key = public_set.key(image.name)
        split = _split_of(key)
        datasets[split].append(_write_small(item, target / split / "images" / f"{key}.jpg"))
    for split, dataset in datasets.items():
        content = coco_json(dataset, public_set.classes, f"{public_set.name}, {split}")
        (target / split / "annotations.json").write_text(json.dumps(content, separators=(",", ":")))
    if public_set.licence_text is None:
        shutil.copyfile(source / "LICENSE", target / "LICENSE")
    else:
        (target / "LICENSE").write_text(public_set.licence_text)
    if fault := find_fault(public_set, target):
        raise ValueError(f"The labels in {source} are not those of {public_set.origin}: of what they give, {fault}.")


def copy_converted(source: Path, target: Path) -> None:
    """Copy the files of the data set, which :func:`find_fault` has found to be right, into the folder ``target``."""
    for split in SPLITS:
        (target / split / "images").mkdir(parents=True)
        shutil.copyfile(source / split / "annotations.json", target / split / "annotations.json")
        for image in _images(source / split / "annotations.json"):
            name = Path("images", image["file_name"])
            shutil.copyfile(source / split / name, target / split / name)
    shutil.copyfile(source / "LICENSE", target / "LICENSE")


def find_fault(public_set: PublicSet, folder: Path) -> str | None:
    """
    Why a folder does not hold the data set; None if it does: annotation files with the right checksums, every image
    whole and of the size that they state, and the licence. The images' bytes depend on Pillow's version and are not
    compared.
    """
    for split in SPLITS:
        path = folder / split / "annotations.json"
        if not path.is_file():
            return f"it has no {split}/annotations.json"
        if hashlib.sha256(path.read_bytes()).hexdigest() != public_set.annotations_sha256[split]:
            return f"its {split}/annotations.json has another checksum"
        for image in _images(path):
            name = f"{split}/images/{image['file_name']}"
            try:
                size = image_size(folder / name)
                with Image.open(folder / name) as pixels:
                    pixels.load()  # to its end: half a file has a size, too
            except (OSError, ValueError):
                return f"its {name} is missing or no whole image"
            if size != (image["width"], image["height"]):
                return f"its {name} has another size than annotations.json states"
    return None if (folder / "LICENSE").is_file() else "it has no LICENSE, which has to accompany the data"


def repository_in(public_set: PublicSet, folder: Path) -> Path | None:
    """The unpacked repository: ``folder``, or a folder in it, as archives have; None: there is none."""
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return next(
        (path for path in candidates if all((path / images).is_dir() for images, _ in public_set.folders)), None
    )


def _images(annotations: Path) -> list[dict[str, Any]]:
    return json.loads(annotations.read_bytes())["images"]


def _pairs(public_set: PublicSet, source: Path) -> list[tuple[Path, Path]]:
    """(image, label file) of every image, in the order of their paths."""
    return [
        (image, source / labels / f"{image.stem}{public_set.labels}")
        for images, labels in public_set.folders
        for image in sorted((source / images).iterdir(), key=lambda path: path.name)  # by case, on Windows too
        if image.suffix.lower() == ".jpg"
    ]


def _checksum(source: Path, images: list[Path]) -> str:
    total = hashlib.sha256()
    for path in images:
        total.update(path.relative_to(source).as_posix().encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _split_of(key: str) -> str:
    percent = int(hashlib.sha1(key.encode()).hexdigest(), 16) % 100
    return next(split for split, below in _SHARES.items() if percent < below)


def _write_small(item: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the image scaled to ``path``; returns its dataset dict, with boxes in the new pixels."""
    scale = LONG_SIDE / max(item["width"], item["height"])
    width, height = round(item["width"] * scale), round(item["height"] * scale)
    with Image.open(item["file_name"]) as image:
        image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(path, quality=_QUALITY)
    annotations = []
    for annotation in item["annotations"]:
        x0, y0, x1, y1 = annotation["bbox"]
        x0, x1 = (min(max(x * width / item["width"], 0), width) for x in (x0, x1))
        y0, y1 = (min(max(y * height / item["height"], 0), height) for y in (y0, y1))
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            annotations.append({**annotation, "bbox": [x0, y0, x1, y1]})
    return {"file_name": str(path), "width": width, "height": height, "annotations": annotations}
