"""Images to compare an exported file on, or to calibrate it with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from detectron2.data.detection_utils import read_image
from omegaconf import DictConfig, OmegaConf
from PIL import UnidentifiedImageError
from torch import Tensor

from d2kd.config.nodes import made
from d2kd.engine import make_loader
from d2kd.export.weights import ExportError

__all__ = ["images_of_files", "test_images", "train_images"]


def images_of_files(paths: Sequence[Path], input_format: str) -> list[Tensor]:
    """
    (C, H, W) images of 0 to 255, in their own size.

    Raises:
        ExportError: a file is no image, or not a whole one.
        OSError: it cannot be opened.
    """
    images = []
    for path in paths:
        try:
            pixels = read_image(str(path), format=input_format)
        except OSError as error:
            if error.errno is not None:  # of the file system, which names the file
                raise
            cut = not isinstance(error, UnidentifiedImageError)
            raise ExportError(
                f"--images {path} {f'cannot be read: {error}' if cut else 'is no image that Pillow reads'}."
            ) from error
        images.append(torch.as_tensor(pixels.transpose(2, 0, 1).astype("float32")))
    return images


def test_images(cfg: DictConfig, count: int) -> list[Tensor]:
    """
    The first images of ``cfg.dataloader.test``, as its mapper makes them.

    Raises:
        ExportError: the config has no such node.
        ValueError, OSError: see :func:`d2kd.engine.make_loader`; the data may not be there.
    """
    if OmegaConf.select(cfg, "dataloader.test", default=None) is None:
        raise ExportError("The config has no dataloader.test.")
    loader = make_loader(cfg, "test")
    images = (item["image"] for batch in loader for item in batch)
    return list(islice(images, count))


def train_images(cfg: DictConfig, count: int) -> list[Tensor]:
    """
    ``count`` images of ``cfg.dataloader.train.dataset``, or all if it has fewer, spread evenly over it, without its
    augmentations: as the mapper of ``cfg.dataloader.test`` makes them.

    Raises:
        ExportError: the config has no such nodes.
        ValueError, OSError: see :func:`d2kd.config.nodes.made`; the data may not be there.
    """
    keys = ("dataloader.train.dataset", "dataloader.test.mapper")
    nodes = [OmegaConf.select(cfg, key, default=None) for key in keys]
    if None in nodes:
        raise ExportError(f"The config has no {keys[nodes.index(None)]}, which --int8 takes its images from.")
    dataset, mapper = (made(node, key) for node, key in zip(nodes, keys))
    count = min(count, len(dataset))
    return [mapper(dataset[i * len(dataset) // count])["image"] for i in range(count)]
