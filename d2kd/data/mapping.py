"""Errors of data mappers, which name the entry of the dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetMapper
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = ["NamingMapper", "SampleError", "map_entry"]

logger = logging.getLogger(f"detectron2.{__name__}")

#: Files that may have more than 8 bits a channel.
_DEEP = (".png", ".tif", ".tiff", ".pgm")


class SampleError(OSError):
    """
    A sample that cannot be made, in one sentence.

    Args:
        message: that sentence. torch hands on the error of a worker process as an error of the same class, whose
            message is the worker's traceback: what stands before the sentence is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def map_entry(
    mapper: Callable[[dict], Any], item: dict, key: str, entry: str, advice: str = "correct the entry, or leave it out"
) -> Any:
    """
    ``mapper(item)``.

    Args:
        key: the mapper's key in the config, for messages.
        entry: what of the dataset ``item`` is, for messages.
        advice: the end of a message.

    Raises:
        SampleError: the mapper fails, or is Detectron2's and would cut an image's values above 255.
    """
    try:
        if isinstance(mapper, DatasetMapper):
            _check_depth(item)
        return mapper(item)
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, OSError) and error.strerror:  # whose text has the file's name once more
            found = error.strerror
        if not isinstance(error, (OSError, ValueError)):  # it may be a defect of the mapper
            logger.exception("%s failed for %s", key, entry)
            advice = "correct the mapper, if the entry is as it should be"
        raise SampleError(f"{key} cannot read {entry}: {found.rstrip('.')}: {advice}.") from error


class NamingMapper:
    """
    A mapper of Detectron2's loaders whose errors name the entry's file, which Pillow's do not.

    Args:
        key: its key in the config, for messages.
    """

    def __init__(self, mapper: Callable[[dict], Any], key: str) -> None:
        self._mapper, self._key = mapper, key

    def __call__(self, item: dict) -> Any:
        return map_entry(self._mapper, item, self._key, item.get("file_name", "an entry without a file_name"))


def _check_depth(item: dict) -> None:
    """
    Raises:
        ValueError: Detectron2's mapper would read the image as white, since it cuts values above 255.
    """
    name = str(item.get("file_name", ""))
    if Path(name).suffix.lower() not in _DEEP:
        return
    with Image.open(PathManager.get_local_path(name)) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"it has more than 8 bits a channel ({image.mode}), which DatasetMapper does not scale; convert it to 8"
            )
