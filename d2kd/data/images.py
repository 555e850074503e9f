"""What an image file says without being decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

__all__ = ["image_size"]

#: EXIF orientations that turn width into height.
_TURNED = (5, 6, 7, 8)


def image_size(path: str | Path) -> tuple[int, int]:
    """
    (width, height) of an image file as Detectron2's mapper reads it, the camera's rotation (EXIF) applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that Pillow can read.") from error
    return (height, width) if turned else (width, height)
