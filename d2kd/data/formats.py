"""Images and their labels, in COCO's, YOLO's or Pascal VOC's files, as datasets of Detectron2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.data.coco import category_names, read_coco
from d2kd.data.images import IMAGE_SUFFIXES, image_size
from d2kd.data.voc import read_voc, voc_root
from d2kd.data.yolo import name_files, read_yolo, yolo_names

__all__ = [
    "FORMATS",
    "class_names",
    "find_format",
    "label_files",
    "read_labelled",
    "register_labelled",
    "unused_labels",
]

#: How a label file ends, by format.
FORMATS = {"coco": ".json", "yolo": ".txt", "voc": ".xml"}


def register_labelled(
    name: str,
    *,
    format: str,
    images: str | Path,
    annotations: str | Path,
    classes: Sequence[str],
    ignore_difficult: bool = False,
) -> None:
    """
    Register images and their labels with Detectron2 under a name; they are read when the dataset is loaded. To be
    called in a config, which may be read several times: the same call again changes nothing, another one replaces the
    dataset.

    The metadata have no ``json_file``, in COCO's format neither: Detectron2's ``COCOEvaluator`` then evaluates on the
    boxes that are read here, and wants an ``output_dir``. Given the file itself, it fails where an annotation has no
    "area" or "iscrowd".

    Args:
        format, images, annotations, classes: see :func:`read_labelled`.
        ignore_difficult: for an evaluation: objects that their labels mark as difficult become crowd regions, which are
            neither missed nor wrong. Otherwise they are objects as the others, as in Detectron2's reader of VOC.
    """
    labelled = {
        "format": format,
        "images": str(images),
        "annotations": str(annotations),
        "classes": list(classes),
        "ignore_difficult": ignore_difficult,
    }
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("labelled") == labelled:
            return
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)

    def read() -> list[dict[str, Any]]:
        dataset = read_labelled(format, images, annotations, classes, name)
        for annotation in (x for item in dataset for x in item["annotations"] if ignore_difficult):
            annotation["iscrowd"] = int(annotation["iscrowd"] or annotation.get("difficult", False))
        return dataset

    DatasetCatalog.register(name, read)
    MetadataCatalog.get(name).set(
        labelled=labelled, image_root=str(images), thing_classes=list(classes), evaluator_type="coco"
    )


def read_labelled(
    format: str, images: str | Path, annotations: str | Path, classes: Sequence[str], name: str | None = None
) -> list[dict[str, Any]]:
    """
    Detectron2's dataset dicts of images and their labels.

    Args:
        format: "coco", "yolo" or "voc".
        images: the images' folder; for YOLO and VOC also a text file with an image in each line: a path relative to
            that file, or, as in VOC's ``ImageSets/Main``, a name in the ``JPEGImages`` beside ``ImageSets``.
        annotations: COCO's json file, or the folder of YOLO's text or VOC's xml files: of the same names as the
            images, in the same folders below. An image without a file has no objects in YOLO's format; in VOC's, it has
            no labels and is left out.
        classes: names by class id.
        name: of the registered dataset that is loaded; COCO's category ids are put into its metadata, if they are
            numbers and no class is missing.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not what it should be, or there is no image.
    """
    images, annotations = Path(images), Path(annotations)
    dataset: list[dict[str, Any]]
    if format == "coco":
        dataset, ids = read_coco(annotations, images, classes)
        if name and len(ids) == len(classes) and all(isinstance(own, int) for own in ids):
            MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = ids
        return dataset
    dataset = []
    for image, labels in label_files(format, images, annotations).items():
        if labels is None:
            if format == "voc":
                continue
            width, height = image_size(image)
            item: dict[str, Any] = {"file_name": str(image), "width": width, "height": height, "annotations": []}
        else:
            item = read_voc(labels, image, classes) if format == "voc" else read_yolo(labels, image, len(classes))
        dataset.append({"image_id": len(dataset), **item})
    if not dataset:
        raise ValueError(f"None of the images of {images} has an xml file in {annotations}: the names must be equal.")
    return dataset


def label_files(format: str, images: Path, annotations: Path) -> dict[Path, Path | None]:
    """
    Each image and its label file, in the order of the images' paths; None: it has none.

    Args:
        format: "yolo" or "voc"; the rest as of :func:`read_labelled`.

    Raises:
        FileNotFoundError: the folder of images or labels, or an image that the list names, is missing.
        ValueError: there is no image, or two have one label file.
    """
    if not annotations.is_dir():
        raise FileNotFoundError(f"{annotations} is no folder, expected that of the {FORMATS[format]} files.")
    if images.is_dir():
        found = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        pairs = {
            path: annotations / path.relative_to(images).with_suffix(FORMATS[format])
            for path in found
            if not path.name.startswith(".") and not path.is_dir()
        }
    elif images.is_file():
        lines = [line.strip() for line in images.read_text("utf-8-sig", errors="surrogateescape").splitlines()]
        listed = [_listed(line, images) for line in lines if line]
        pairs = {path: _label_of_listed(path, annotations, FORMATS[format]) for path in listed}
    else:
        raise FileNotFoundError(f"{images} is not there, expected the folder of the images, or a list of them.")
    if not pairs:
        raise ValueError(f"{images} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    labelled = {path: labels if labels.is_file() else None for path, labels in pairs.items()}
    image_of: dict[Path, Path] = {}
    for path, labels in labelled.items():
        if labels is not None and (other := image_of.setdefault(labels, path)) != path:
            raise ValueError(f"{other} and {path} have one label file, {labels}: rename one of the images.")
    return labelled


def unused_labels(format: str, images: Path, annotations: Path) -> int:
    """How many label files have no image of their name: see :func:`label_files`; ``images`` is a folder."""
    used = set(label_files(format, images, annotations).values())
    found = {*annotations.rglob(f"*{FORMATS[format]}")} - name_files(annotations)
    return len(found - used)


def _label_of_listed(image: Path, annotations: Path, suffix: str) -> Path:
    """Of an image that a list names: in the same folders below ``annotations`` as it is in, if it is there."""
    parts = image.with_suffix(suffix).parts
    tails = (annotations.joinpath(*parts[start:]) for start in range(1, len(parts)))
    return next((path for path in tails if path.is_file()), annotations / parts[-1])


def _listed(line: str, file: Path) -> Path:
    """The image that a line of a list names."""
    path = file.parent / line
    if path.is_file():
        return path
    folder = file.parent.parent.parent / "JPEGImages"
    names = dict.fromkeys((line, re.sub(r"\s+-?[01]$", "", line)))  # the list of a class has a flag behind each name
    found = [folder / f"{name}{suffix}" for name in names for suffix in IMAGE_SUFFIXES]
    existing = [path for path in found if path.is_file()]
    if not existing:
        raise FileNotFoundError(
            f"{file} names {line!r}, but there is neither {path} nor an image of that name in {folder}."
        )
    return existing[0]


def find_format(annotations: Path) -> str:
    """
    The format of label files.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: they are of none, or of several.
    """
    if annotations.is_file():
        kinds = ["coco"] if annotations.suffix == FORMATS["coco"] else []
    elif annotations.is_dir():
        named = name_files(annotations)
        endings = {path.suffix for path in annotations.rglob("*") if path.is_file() and path not in named}
        kinds = [format for format, suffix in FORMATS.items() if suffix in endings]
        if kinds == ["coco"]:
            raise ValueError(f"{annotations} is a folder with json files, expected one of them: COCO's annotations.")
    else:
        raise FileNotFoundError(f"{annotations} is not there, expected a json file or the folder of the labels.")
    if len(kinds) != 1:
        found = f"files of several formats ({', '.join(kinds)})" if kinds else "no .json, .txt or .xml labels"
        raise ValueError(f"{annotations} has {found}: give the right file or folder, and --format.")
    return kinds[0]


def class_names(format: str, images: Path, annotations: Path) -> list[str]:
    """
    Names by class id: COCO's categories by their ids, the sorted names of VOC's objects, or those of a file that YOLO's
    tools write beside or above the labels: ``classes.txt``, ``obj.names``, or ``names`` of a ``.yaml``.

    Raises:
        FileNotFoundError: there are no files, or no names.
        ValueError: a file is not what it should be, or a name occurs twice.
    """
    if format == "coco":
        names = category_names(annotations)
    elif format == "voc":
        files = [path for path in label_files(format, images, annotations).values() if path is not None]
        objects = (found for path in files for found in voc_root(path).findall("object"))
        names = sorted({found.findtext("name", "").strip() for found in objects} - {""})
    else:
        names = yolo_names(annotations)
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{annotations} has two classes named {twice[0]!r}: rename one.")
    return names
