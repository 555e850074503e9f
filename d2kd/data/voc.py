"""Pascal VOC's xml files, as LabelImg and other tools write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detectron2.structures import BoxMode

from d2kd.data.images import image_size

__all__ = ["read_voc", "voc_root"]


def read_voc(path: str | Path, image: str | Path, classes: Sequence[str]) -> dict[str, Any]:
    """
    One image and its xml file as a Detectron2 dataset dict without "image_id". Coordinates are those of the file: tools
    that follow Pascal VOC count pixels from 1, others from 0. An object that is marked so has ``"difficult": True``.

    Args:
        path: the xml file.
        image: the image file; the name that the xml file gives is not looked at.
        classes: names by class id.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: the xml file cannot be read, gives the image another size than it has, has a class that is not in
            ``classes``, or an object without four numbers.
    """
    root = voc_root(path)
    width, height = image_size(image)
    stated = tuple(re.sub(r"\.0*$", "", root.findtext(f"size/{side}", "").strip()) for side in ("width", "height"))
    if not {*stated} <= {"", "0"} and stated != (str(width), str(height)):
        raise ValueError(
            f"{path} is of an image of {'x'.join(stated)} pixels, but {image} has {width}x{height}: one of them was "
            "resized or rotated."
        )
    annotations = []
    for number, found in enumerate(root.findall("object"), start=1):
        name = found.findtext("name", "").strip()
        if name not in classes:
            raise ValueError(
                f"{path}: object {number} is of class {name!r}, expected one of {', '.join(map(repr, classes))}."
            )
        corners = [found.findtext(f"bndbox/{corner}", "") for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = [float(corner) for corner in corners]
        except ValueError as error:
            raise ValueError(
                f"{path}: object {number} has the bndbox {corners}, expected the numbers xmin, ymin, xmax and ymax."
            ) from error
        annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": classes.index(name), "iscrowd": 0}
        if found.findtext("difficult", "").strip().lower() in ("1", "true"):
            annotation["difficult"] = True
        annotations.append(annotation)
    return {"file_name": str(image), "width": width, "height": height, "annotations": annotations}


def voc_root(path: str | Path) -> ElementTree.Element:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no XML that Python can read, or no annotation of Pascal VOC.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: of its encoding
        raise ValueError(f"{path} is no XML: {error}.") from error
    if root.tag != "annotation":
        raise ValueError(f"{path} begins with <{root.tag}>, expected the <annotation> of Pascal VOC.")
    return root
