"""Images and their labels, in COCO's, YOLO's or Pascal VOC's files, as datasets of Detectron2."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from d2kd.data.images import image_size
from d2kd.data.reading import fault_of_file
from d2kd.data.voc import read_voc
from d2kd.data.yolo import read_yolo

__all__ = ["FORMATS", "class_names", "find_format", "label_files", "read_labelled", "register_labelled"]

#: How a label file ends, by format.
FORMATS = {"coco": ".json", "yolo": ".txt", "voc": ".xml"}
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
#: Where YOLO's tools keep the names of classes: in the folder of the labels, or above it.
_NAMES = ("classes.txt", "obj.names", "*.yaml", "*.yml")


def register_labelled(
    name: str, *, format: str, images: str | Path, annotations: str | Path, classes: Sequence[str]
) -> None:
    """
    Register images and their labels with Detectron2 under a name; they are read when the dataset is loaded. To be
    called in a config, which may be read several times: the same call again changes nothing, another one replaces the
    dataset.

    Args:
        format, images, annotations, classes: see :func:`read_labelled`.
    """
    source = {"format": format, "images": str(images), "annotations": str(annotations), "classes": list(classes)}
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("source") == source:
            return
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, lambda: read_labelled(format, images, annotations, classes, name))
    files = {"json_file": str(annotations)} if format == "coco" else {}
    MetadataCatalog.get(name).set(
        source=source, image_root=str(images), thing_classes=list(classes), evaluator_type="coco", **files
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
        name: of the registered dataset that is loaded; COCO's ids are put into its metadata.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not what it should be, or there is no image.
    """
    images, annotations = Path(images), Path(annotations)
    if format == "coco":
        return _read_coco(images, annotations, classes, name)
    dataset: list[dict[str, Any]] = []
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


def _read_coco(images: Path, annotations: Path, classes: Sequence[str], name: str | None) -> list[dict[str, Any]]:
    found = class_names("coco", images, annotations)
    if found != list(classes):
        raise ValueError(f"{annotations} has the categories {_quoted(found)}, expected {_quoted(classes)}.")
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools'
            dataset = load_coco_json(str(annotations), str(images), name)
    except AssertionError as error:
        raise ValueError(f"{annotations} cannot be read: {error}") from error
    if name is None:  # Detectron2 numbers the categories for a registered dataset only
        ids = sorted(category["id"] for category in json.loads(annotations.read_bytes())["categories"])
        for item in dataset:
            for annotation in item["annotations"]:
                annotation["category_id"] = ids.index(annotation["category_id"])
    return dataset


def label_files(format: str, images: Path, annotations: Path) -> dict[Path, Path | None]:
    """
    Each image and its label file, in the order of the images' paths; None: it has none.

    Args:
        format: "yolo" or "voc"; the rest as of :func:`read_labelled`.

    Raises:
        FileNotFoundError: the folder of images or labels, or an image that the list names, is missing.
        ValueError: there is no image.
    """
    if not annotations.is_dir():
        raise FileNotFoundError(f"{annotations} is no folder, expected that of the {FORMATS[format]} files.")
    if images.is_dir():
        found = sorted(path for path in images.rglob("*") if path.suffix.lower() in _IMAGES)
        pairs = {path: annotations / path.relative_to(images).with_suffix(FORMATS[format]) for path in found}
    elif images.is_file():
        lines = [line.strip() for line in images.read_text(errors="replace").splitlines()]
        pairs = {
            path: annotations / f"{path.stem}{FORMATS[format]}"
            for path in (_listed(line, images) for line in lines if line)
        }
    else:
        raise FileNotFoundError(f"{images} is not there, expected the folder of the images, or a list of them.")
    if not pairs:
        raise ValueError(f"{images} has no images ({', '.join(_IMAGES)}).")
    return {path: labels if labels.is_file() else None for path, labels in pairs.items()}


def _listed(line: str, file: Path) -> Path:
    """The image that a line of a list names."""
    path = file.parent / line
    if path.is_file():
        return path
    folder = file.parent.parent.parent / "JPEGImages"
    found = [folder / f"{line.split()[0]}{suffix}" for suffix in _IMAGES]
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
        named = {path for pattern in _NAMES for path in annotations.glob(pattern)}
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
        if fault := fault_of_file(str(annotations)):
            raise ValueError(f"{annotations} {fault}.")
        categories = json.loads(annotations.read_bytes())["categories"]
        names = [str(each["name"]) for each in sorted(categories, key=lambda each: each["id"])]
    elif format == "voc":
        files = [path for path in label_files(format, images, annotations).values() if path is not None]
        names = sorted({name for path in files for name in _voc_names(path)} - {""})
    else:
        names = _yolo_names(annotations)
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{annotations} has two classes named {twice[0]!r}: rename one.")
    return names


def _voc_names(path: Path) -> list[str]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML: {error}.") from error
    return [found.findtext("name", "").strip() for found in root.findall("object")]


def _yolo_names(labels: Path) -> list[str]:
    for folder in (labels, *labels.resolve().parents[:2]):
        for file in (path for pattern in _NAMES for path in sorted(folder.glob(pattern))):
            if file.suffix in (".yaml", ".yml"):
                try:
                    content = yaml.safe_load(file.read_text())
                except (yaml.YAMLError, UnicodeDecodeError):
                    continue
                names = content.get("names") if isinstance(content, dict) else None
                if isinstance(names, dict) and sorted(names) == list(range(len(names))):
                    names = [names[number] for number in range(len(names))]
                if isinstance(names, list) and names:
                    return [str(name) for name in names]
            elif names := [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]:
                return names
    raise FileNotFoundError(
        f"{labels} and the folders above it have no names of classes: write them into {labels / 'classes.txt'}, a name "
        "a line, in the order of the class ids."
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (", ..." if len(names) > 6 else "")
