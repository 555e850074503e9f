"""A distilled run of seconds whose files all lie in one folder: images, a teacher, a config. Not a test."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import DictConfig
from PIL import Image

import d2kd
from d2kd.data import build_train_loader
from tests.nodes import fcos

__all__ = ["parts", "write_images", "write_run"]

CONFIG = """\
from tests.bad_inputs.tiny import parts

model, optimizer, lr_multiplier, dataloader, train = parts({folder!r})
"""
CLASSES = ("tern", "heron", "plover")


def write_run(folder: Path, more: str = "") -> str:
    """
    Write images, ``teacher.pth`` and the config ``mine.py`` to ``folder``; returns the config's path, relative to it.

    Args:
        more: Python, at the config's end.
    """
    write_images(folder)
    (folder / "teacher.pth").write_bytes(_teacher())
    (folder / "mine.py").write_text(CONFIG.format(folder=str(folder)) + more)
    return "mine.py"


def write_images(folder: Path, images: int = 4) -> None:
    """Write ``birds.json``, in COCO's format, and its images of 64 x 64 pixels with one object each."""
    (folder / "images").mkdir(exist_ok=True)
    entries, annotations = [], []
    for i, content in enumerate(_images(images)):
        (folder / "images" / f"{i}.png").write_bytes(content)
        entries.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        box = [4 + 2 * i, 8, 24, 20 + i]
        target = {"bbox": box, "area": box[2] * box[3], "category_id": 1 + i % len(CLASSES), "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i, **target})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    (folder / "birds.json").write_text(
        json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    )


def parts(folder: str) -> tuple[DictConfig, DictConfig, DictConfig, dict, DictConfig]:
    """
    The nodes of a config, new ones at each call. Registers ``birds_train`` and ``birds_val``, both the images of
    ``folder``.
    """
    for name in ("birds_train", "birds_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, f"{folder}/birds.json", f"{folder}/images")
    model = d2kd.distill(fcos(), teacher=fcos(), teacher_checkpoint=f"{folder}/teacher.pth", method="crosskd")
    model.losses.crosskd_cls.tail = model.losses.crosskd_loc.tail = 1  # the heads have two blocks
    optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(), lr=0.001, momentum=0.9)
    dataloader = dict(
        train=L(build_train_loader)(
            dataset=L(get_detection_dataset_dicts)(names="birds_train"),
            mapper=L(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR"),
            total_batch_size=2,
            num_workers=0,
            seed="${train.seed}",
        ),
        test=L(build_detection_test_loader)(
            dataset=L(get_detection_dataset_dicts)(names="birds_val", filter_empty=False),
            mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR"),
            num_workers=0,
        ),
        evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}", tasks=["bbox"]),
    )
    train = d2kd.get_config("common/train.py").train
    train.update(max_iter=2, eval_period=0, log_period=1, device="cpu", output_dir=f"{folder}/output")
    return model, optimizer, L(LinearParamScheduler)(start_value=1.0, end_value=1.0), dataloader, train


@cache
def _images(count: int) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "png")
        found.append(file.getvalue())
    return found


@cache
def _teacher() -> bytes:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        file = io.BytesIO()
        torch.save({"model": instantiate(fcos()).state_dict()}, file)
    return file.getvalue()
