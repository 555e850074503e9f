"""What a detector sees on images of a person's own: pictures with boxes, and a json."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from omegaconf import DictConfig, OmegaConf

from d2kd.checkpoint import load_strictly, whole_file
from d2kd.config.nodes import dataset_names, made, target_of
from d2kd.data.images import IMAGE_SUFFIXES, image_size
from d2kd.data.mapping import map_entry
from d2kd.data.public import get_public_data
from d2kd.engine.check_data import check_image_format
from d2kd.engine.defaults import ConfigError, resolve_device
from d2kd.engine.sheet import Box, class_names, draw_boxes, file_names
from d2kd.modeling import student
from d2kd.modeling.detectors.interface import num_classes_of

__all__ = [
    "PREDICTIONS",
    "Classes",
    "Prediction",
    "classes_of",
    "find_images",
    "load_detector",
    "predict_images",
    "write_predictions",
]

#: The json in the output folder.
PREDICTIONS = "predictions.json"

_KEY = "dataloader.test.mapper"
#: Of a picture's longer side, in pixels: labels have one size, and are to be read on small and large images.
_SMALLEST, _LARGEST = 640, 1600
_MOST_TEXTS = 50


class Classes(NamedTuple):
    """
    Attributes:
        names: by the number of a class in the model; None: unknown.
        ids: by the same, its id in the dataset's file, if it has that class; None: unknown.
    """

    names: Sequence[str] | None
    ids: Mapping[int, int] | None


class Prediction(NamedTuple):
    """
    What is detected on one image.

    Attributes:
        file: as it was given.
        pixels: (H, W, 3) uint8, RGB, turned as its EXIF data say.
        rows: a detection each, the surest first: xyxy in pixels, the class's number, the score.
    """

    file: str
    pixels: np.ndarray
    rows: list[tuple[tuple[float, float, float, float], int, float]]


def find_images(paths: Sequence[str]) -> list[str]:
    """
    The files among ``paths``, and of each folder its images (``d2kd.data.images.IMAGE_SUFFIXES``), by name; those in
    its folders, and hidden ones, are left out. A file that is given twice is taken once.

    Raises:
        ConfigError: one is neither a file nor a folder, is no image, or is a folder without images.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(x for x in Path(path).iterdir() if x.is_file() and not x.name.startswith("."))
            images = [str(x) for x in inside if x.suffix.lower() in IMAGE_SUFFIXES]
            if not images:
                raise ConfigError(f"The folder {path} has no images ({', '.join(IMAGE_SUFFIXES)}).")
            found += images
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise ConfigError(f"There is no image or folder {path!r}.")
    for file in found:
        try:
            image_size(file)  # of its first bytes, so that nothing is predicted before a refusal
        except ValueError as error:
            raise ConfigError(str(error)) from error
    once: dict[str, str] = {}
    for file in found:
        once.setdefault(os.path.realpath(file), file)
    return list(once.values())


def classes_of(cfg: DictConfig, detector: DenseDetector) -> Classes:
    """
    The detector's classes as a config's data call them, from what is registered; data that cannot be read, such as of
    another machine, are no error.
    """
    num_classes = num_classes_of(detector)
    for split in ("test", "train"):
        node = OmegaConf.select(cfg, f"dataloader.{split}.dataset", default=None)
        if isinstance(node, DictConfig) and target_of(node) is get_public_data:
            with contextlib.suppress(ValueError, OSError):
                made(node, f"dataloader.{split}.dataset")  # which registers the data; get_digits would make them
    names = class_names(cfg, num_classes)
    datasets = [*dataset_names(cfg, "test"), *dataset_names(cfg, "train")]
    for dataset in datasets if names is None else ():
        if dataset in DatasetCatalog.list():
            try:
                DatasetCatalog.get(dataset)  # which puts the classes of a COCO file into its metadata
            except Exception:  # whatever a person's function does
                continue
            names = class_names(cfg, num_classes)
            break
    known = (
        MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id")
        for dataset in datasets
        if dataset in MetadataCatalog.list()
    )
    ids = next(filter(None, known), None)
    return Classes(names, None if ids is None else {number: own for own, number in ids.items()})


def load_detector(cfg: DictConfig, weights: str) -> DenseDetector:
    """
    The plain detector of a config, distilled or not, with a checkpoint's weights, in eval mode on ``train.device``.

    Raises:
        ConfigError: the config's model is no one-stage detector, or its data mapper is missing, or reads other channels
            than the model expects.
        MisfitError, LayoutError, DamagedError: the weights are not of that detector.
        FileNotFoundError: there is no such file.
    """
    model = made(cfg.model, "model")
    try:
        detector = student(model)
    except TypeError as error:
        raise ConfigError(
            f"The config's model is of {type(model).__name__}, expected a one-stage detector (a DenseDetector such as "
            "RetinaNet), plain or in d2kd.distill()."
        ) from error
    if OmegaConf.select(cfg, _KEY, default=None) is None:
        raise ConfigError(f"The config has no {_KEY}, which says how images are read, such as L(DatasetMapper)(...).")
    check_image_format(cfg, model)
    load_strictly(
        detector,
        weights,
        refusal=f"{weights} is no checkpoint of the config's detector ({type(detector).__name__})",
        absent=f"The weights are {weights!r}, but there is no such file.",
    )
    return detector.to(resolve_device(OmegaConf.select(cfg, "train.device", default="auto"))).eval()


@torch.no_grad()
def predict_images(
    cfg: DictConfig, detector: DenseDetector, files: Sequence[str], threshold: float
) -> Iterator[Prediction]:
    """
    Run a detector on image files, one after the other, as the mapper of ``dataloader.test`` reads them.

    Args:
        cfg: ``dataloader.test.mapper`` is read.
        detector: of :func:`load_detector`; if its own threshold is higher than ``threshold``, it is lowered.
        threshold: the least score.

    Raises:
        SampleError: an image cannot be read to its end.
        ValueError: the mapper cannot be made.
    """
    mapper: Callable[[dict], Any] = made(cfg.dataloader.test.mapper, _KEY)
    if getattr(detector, "test_score_thresh", threshold) > threshold:
        setattr(detector, "test_score_thresh", threshold)  # noqa: B010 - which not every DenseDetector declares
    for file in files:
        entry: dict[str, Any] = {"file_name": file, "image_id": file}
        item = map_entry(mapper, entry, _KEY, file, "give another image")
        pixels = read_image(file, format="RGB")
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        instances = detector([{"image": item["image"], **size}])[0]["instances"].to("cpu")
        found = zip(
            (tuple(xyxy) for xyxy in instances.pred_boxes.tensor.tolist()),
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
        )
        yield Prediction(file, pixels, sorted((x for x in found if x[2] >= threshold), key=lambda x: -x[2]))


def write_predictions(
    folder: Path, predictions: Iterator[Prediction], files: Sequence[str], classes: Classes
) -> Iterator[tuple[str, Path, int]]:
    """
    Draw each prediction, and write all of them as ``predictions.json``: a list like COCO's results, with "file_name" in
    place of an image's id, the class's name, and the picture. The json is written when all are drawn.

    Args:
        folder: made if it is not there; what has the name of a new file is replaced.
        files: of the predictions, in their order.

    Yields:
        each image, its picture, and how many boxes that has.

    Raises:
        ConfigError: a picture would replace one of ``files``.
    """
    pictures = [folder / name for name in file_names(files, ".jpg")]
    given = {os.path.realpath(file): file for file in files}
    for picture in pictures:
        if (file := given.get(os.path.realpath(picture))) is not None:
            raise ConfigError(f"The picture {picture} would replace the image {file}: give another --output.")
    rows: list[dict[str, Any]] = []
    for picture, prediction in zip(pictures, predictions, strict=True):
        boxes = []
        for xyxy, number, score in prediction.rows:
            name = str(number) if classes.names is None else classes.names[number]
            boxes.append(Box(xyxy, name, score))
            x0, y0, x1, y1 = xyxy
            rows.append(
                {
                    "file_name": prediction.file,
                    "category_id": number if classes.ids is None else classes.ids.get(number),
                    "category_name": name,
                    "bbox": [round(x, 2) for x in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(score, 4),
                    "picture": picture.name,
                }
            )
        height, width = prediction.pixels.shape[:2]
        scale = min(max(_SMALLEST, max(height, width)), _LARGEST) / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        drawn = draw_boxes(prediction.pixels, boxes, size, _MOST_TEXTS)
        with whole_file(picture) as partial:
            drawn.save(partial, format="JPEG", quality=90)
        yield prediction.file, picture, len(boxes)
    with whole_file(folder / PREDICTIONS) as partial:
        partial.write_text("[" + ",\n ".join(map(json.dumps, rows)) + "]\n")
