"""Images to look at: of the test data, with their labels, or of files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import ResizeTransform
from omegaconf import DictConfig, OmegaConf

from d2kd.config.nodes import dataset_names, made
from d2kd.data.mapping import map_entry
from d2kd.data.samples import isolated_rng
from d2kd.engine.defaults import ConfigError

__all__ = ["class_names", "file_names", "test_images"]

_KEY = "dataloader.test"


def class_names(cfg: DictConfig, num_classes: int) -> list[str] | None:
    """
    ``thing_classes`` of the training data, or else of the test data, if they are known.

    Args:
        num_classes: of the model; where it has more than the data, the others are called by their numbers.
    """
    datasets = (name for split in ("train", "test") for name in dataset_names(cfg, split))
    known = (MetadataCatalog.get(name).get("thing_classes") for name in datasets if name in MetadataCatalog.list())
    names = next(filter(None, known), None)
    return None if names is None else [*names, *map(str, range(len(names), num_classes))]


def file_names(names: Sequence[str], suffix: str = ".png") -> list[str]:
    """A picture's name for each image; images of one name, such as of two folders, are numbered."""
    found: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.-]+", "_", Path(name).stem)
        free = (f"{stem}{number}{suffix}" for number in ("", *(f"_{n}" for n in range(2, len(names) + 2))))
        found.append(next(file for file in free if file not in found))
    return found


def test_images(cfg: DictConfig, which: Sequence[str] | int) -> list[tuple[str, dict[str, Any]]]:
    """
    Images as ``dataloader.test`` maps them, with their labels as "instances". The random state is kept.

    Args:
        cfg: ``dataloader`` is read.
        which: numbers of entries of the test data, from 0, and paths of files; a file that is no entry has no labels.
            A number N: its first N images with objects.

    Returns:
        what each is called, and the item; its "height" and "width" are those of "image". Fewer than a number N where
        fewer have objects.

    Raises:
        ConfigError: the loader has no dataset and mapper, or there is no such entry or file.
        SampleError: the mapper cannot read one.
        ValueError, OSError: the data cannot be read.
    """
    if any(OmegaConf.select(cfg, f"{_KEY}.{part}") is None for part in ("dataset", "mapper")):
        raise ConfigError(f"{_KEY} has no dataset and mapper, from which the images to draw are taken.")
    with isolated_rng(0):
        entries: list[dict[str, Any]] = list(made(cfg.dataloader.test.dataset, f"{_KEY}.dataset"))
        mapper = made(cfg.dataloader.test.mapper, f"{_KEY}.mapper")
        if isinstance(which, int):
            having = (index for index, entry in enumerate(entries) if entry.get("annotations"))
            return [_mapped(mapper, *_entry(entries, str(index))) for index, _ in zip(having, range(which))]
        return [_mapped(mapper, *_entry(entries, name)) for name in which]


def _entry(entries: Sequence[dict[str, Any]], name: str) -> tuple[str, dict[str, Any]]:
    if os.path.isfile(name):
        known = (x for x in entries if "file_name" in x and os.path.abspath(x["file_name"]) == os.path.abspath(name))
        return os.path.basename(name), next(known, {"file_name": name})
    if not name.isdecimal():
        raise ConfigError(f"{name!r} is no file, and no number of an image of {_KEY}.")
    if int(name) >= len(entries):
        raise ConfigError(f"{_KEY} has {len(entries)} images, from 0 to {len(entries) - 1}, but {name} was asked for.")
    entry = entries[int(name)]
    return f"{name}: {os.path.basename(entry.get('file_name', ''))}".removesuffix(": "), entry


def _mapped(mapper: Callable[[dict], Any], name: str, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    mapped = map_entry(mapper, dict(entry), f"{_KEY}.mapper", entry.get("file_name", name))
    image: torch.Tensor = mapped["image"]
    height, width = image.shape[-2:]
    item: dict[str, Any] = {"image": image, "height": height, "width": width}
    if (annotations := entry.get("annotations")) is not None:
        # A test mapper drops annotations; as Detectron2 does with detections, what it did is taken for a resize.
        resize = ResizeTransform(entry.get("height", height), entry.get("width", width), height, width)
        boxes = [
            {key: x[key] for key in ("bbox", "bbox_mode", "category_id")} for x in annotations if not x.get("iscrowd")
        ]
        boxes = [utils.transform_instance_annotations(x, [resize], (height, width)) for x in boxes]
        item["instances"] = utils.filter_empty_instances(utils.annotations_to_instances(boxes, (height, width)))
    return name, item
