"""What an image file says without being decoded."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

__all__ = ["IMAGE_SUFFIXES", "image_size", "upright_size"]

#: How the names of images end that are looked for in folders.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
#: EXIF orientations that turn width into height.
_TURNED = (5, 6, 7, 8)


def image_size(path: str | Path) -> tuple[int, int]:
    """
    (width, height) of an image file as Detectron2's mapper reads it, the camera's rotation (EXIF) applied.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be opened.
        ValueError: it is no image, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that Pillow reads.") from error
    except Exception as error:  # Pillow's readers of formats raise many kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} cannot be read: {str(error).rstrip('.')}.") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image, the camera's rotation (EXIF) applied."""
    width, height = image.size
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return width, height  # getexif() would decode the image, to look for EXIF data behind its pixels
    turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return (height, width) if turned else (width, height)
