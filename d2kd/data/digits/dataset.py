"""
The embedded benchmark ``digits``: a real detection problem that needs no download and minutes of CPU.

Handwritten digits (scikit-learn) drawn on photographs (scikit-image), 96x96 pixels, five classes, in three
splits that share neither a handwritten sample nor a photograph: ``digits_train`` (8000 images), to choose on
``digits_val`` (400) and to report on ``digits_test`` (400). On disk it is an ordinary COCO dataset::

    manifest.json                         version, seed, libraries, checksums
    annotations/digits_{train,val,test}.json
    {train,val,test}/000001.jpg ...

The json files name, beyond COCO's fields, the ``photo`` behind each image, its ``distractor`` (index into
scikit-learn's ``load_digits``, or null) and the ``sample`` of each annotation (same index).

``python -m d2kd.data.digits`` makes the data; so does :func:`get_digits` at its first use in a data loader::

    dataloader.train.dataset = L(get_digits)(names="digits_train")
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from d2kd.data.digits.composition import CLASSES, IMAGE_SIZE, PHOTOS, Composition, compose, load_material, split_samples

__all__ = ["DATASET_VERSION", "SEED", "SIZES", "get_digits", "prepare_digits", "register_digits"]

logger = logging.getLogger(__name__)

DATASET_VERSION = 2  # increase it with every change of the images or annotations
SEED = 2024
SIZES: dict[str, int] = {"train": 8000, "val": 400, "test": 400}  # images by split

_NAME = "d2kd digits"
_LIBRARIES = ("numpy", "pillow", "scikit-learn", "scikit-image")
_OUR_FILES = re.compile(r"manifest\.json|annotations/digits_(train|val|test)\.json|(train|val|test)/\d{6}\.jpg")


def prepare_digits(root: str | Path | None = None, sizes: Mapping[str, int] | None = None) -> Path:
    """
    Make the dataset, or verify the checksums of an existing one; one that was altered or is of another version is made
    again. The folder is complete or absent, never half-written.

    Args:
        root: the folder; by default ``$DETECTRON2_DATASETS/digits``, or ``datasets/digits`` without it.
        sizes: images by split, if not :data:`SIZES`: the first ones of each, in a ``root`` of their own.
    Returns:
        The folder, absolute.
    Raises:
        ValueError: the folder holds files that are not this dataset's. They are left alone.
        ImportError: the dataset has to be made and scikit-learn or scikit-image is missing.
    """
    root, sizes = _resolve(root), dict(sizes or SIZES)
    fault = _find_fault(root, sizes)
    if fault is None:
        return root
    if root.exists() and any(root.iterdir()):
        _refuse_unknown_files(root)
        logger.warning("The digits dataset in %s is made again: %s.", root, fault)
    logger.info("Making the digits dataset in %s: once, for a minute or some.", root)
    start = time.perf_counter()
    root.parent.mkdir(parents=True, exist_ok=True)
    # A sibling: the same filesystem, so that the finished folder is moved into place in one step.
    workspace = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write(workspace / "new", sizes)
        _install(workspace, root, sizes)
    finally:
        shutil.rmtree(workspace)
    logger.info("Made it in %.1f s.", time.perf_counter() - start)
    return root


def register_digits(root: str | Path | None = None) -> None:
    """
    Register ``digits_train``, ``digits_val`` and ``digits_test`` with Detectron2, for the files in ``root``
    (default: see :func:`prepare_digits`). Another folder replaces one that was registered before. Files are neither
    made nor read here.
    """
    root = _resolve(root)
    for split in SIZES:
        name, images = f"digits_{split}", str(root / split)
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("image_root") == images:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        metadata = {"thing_classes": list(CLASSES)}
        register_coco_instances(name, metadata, str(root / "annotations" / f"{name}.json"), images)


def get_digits(
    names: str | list[str],
    filter_empty: bool = False,
    root: str | Path | None = None,
    images: Sequence[int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[dict]:
    """
    Prepare, register and load the dataset. A config's data loader calls it, so importing a config has no side effect,
    and the first run makes its data.

    Args:
        names: one or several of ``digits_train``, ``digits_val``, ``digits_test``.
        filter_empty: as in Detectron2; every image of this dataset has an object.
        root, sizes: see :func:`prepare_digits`.
        images: (start, stop): only these, counted from 0. Images are independent of each other, so any range
            is a random sample. None: all.
    Returns:
        Detectron2's dataset dicts.
    Raises:
        ValueError: there are no such ``images``.
    """
    if images is not None:
        _check_range(images, [names] if isinstance(names, str) else list(names), sizes or SIZES)
    root = prepare_digits(root, sizes)
    register_digits(root)
    dataset = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    if images is None:
        return dataset
    start, stop = images
    return dataset[start:stop]


def _check_range(images: Sequence[int], names: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Before the data are made, which takes minutes."""
    start, stop = images
    count = sum(sizes.get(name.removeprefix("digits_"), 0) for name in names)
    if not 0 <= start < stop <= count:
        raise ValueError(
            f"images=[{start}, {stop}] of {', '.join(names)}: expected 0 <= start < stop <= {count} (dataset.images)."
        )


def _resolve(root: str | Path | None) -> Path:
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "digits"
    return Path(root).expanduser().resolve()


def _install(workspace: Path, root: Path, sizes: dict[str, int]) -> None:
    """Move ``workspace/new`` to ``root``, unless another process has put a good copy there meanwhile."""
    if _find_fault(root, sizes) is None:
        return
    try:
        if root.exists():
            root.rename(workspace / "old")
        (workspace / "new").rename(root)
    except OSError:  # another process may have moved its own copy there between our steps
        if _find_fault(root, sizes) is not None:
            raise


def _find_fault(root: Path, sizes: dict[str, int]) -> str | None:
    """Why the folder cannot be used as it is; None if it can. Raises ValueError if d2kd did not make it."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return "it is not there"
    try:
        manifest = json.loads((root / "manifest.json").read_bytes())
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("name") != _NAME:
        raise ValueError(
            f"{root} exists, but it has no manifest.json of the digits dataset, so what is in it was not "
            "made by d2kd and is left alone. Move it away, or choose another folder (root, --root or the "
            "environment variable DETECTRON2_DATASETS)."
        )
    wanted = _identity(sizes)
    differing = [key for key in wanted if manifest.get(key) != wanted[key]]
    if differing:
        return ", ".join(f"its {key} is {manifest.get(key)}, wanted is {wanted[key]}" for key in differing)
    found, recorded = _checksums(root, sizes), manifest.get("sha256")
    altered = [key for key in found if not isinstance(recorded, dict) or found[key] != recorded.get(key)]
    return f"files were altered or are missing in {', '.join(altered)}" if altered else None


def _refuse_unknown_files(root: Path) -> None:
    """Raise ValueError if making the dataset again would delete a file that the dataset does not have."""
    files = (path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())
    unknown = sorted(file for file in files if not _OUR_FILES.fullmatch(file))
    if unknown:
        raise ValueError(
            f"The digits dataset in {root} has to be made again, but among its files are {len(unknown)} that "
            f"are not its own and would be deleted, such as {unknown[0]}. Move them away, or choose another "
            "folder."
        )


def _identity(sizes: dict[str, int]) -> dict[str, Any]:
    return {"name": _NAME, "version": DATASET_VERSION, "seed": SEED, "images": sizes}


def _checksums(root: Path, sizes: dict[str, int]) -> dict[str, str | None]:
    """sha256 of each annotation file, and one over all images of each split; None where a file is missing."""
    groups = {f"annotations/digits_{split}.json": [f"annotations/digits_{split}.json"] for split in sizes}
    for split, count in sizes.items():
        groups[split] = [f"{split}/{_file_name(i)}" for i in range(1, count + 1)]
    sums: dict[str, str | None] = {}
    for key, files in groups.items():
        total = hashlib.sha256()
        try:
            for file in files:  # a sum of sums: bytes cannot move from one file to the next unnoticed
                total.update(hashlib.sha256((root / file).read_bytes()).digest())
            sums[key] = total.hexdigest()
        except OSError:
            sums[key] = None
    return sums


def _file_name(image_id: int) -> str:
    return f"{image_id:06d}.jpg"


def _write(root: Path, sizes: dict[str, int]) -> None:
    """Write the whole dataset into ``root``, which must not exist."""
    material = load_material()
    pools = split_samples(material.labels, SEED)
    (root / "annotations").mkdir(parents=True)
    for number, (split, count) in enumerate(sizes.items()):
        (root / split).mkdir()
        compositions = []
        for i in range(1, count + 1):
            # One generator an image: image i is the same whatever the number of images.
            rng = np.random.default_rng([SEED, number, i])
            composition = compose(material, PHOTOS[split], pools[split], rng)
            Image.fromarray(composition.pixels).save(root / split / _file_name(i), quality=92)
            compositions.append(composition)
        annotations = _coco(split, compositions, material.labels)
        (root / "annotations" / f"digits_{split}.json").write_text(json.dumps(annotations))
    manifest = _identity(sizes) | {
        "libraries": {library: importlib.metadata.version(library) for library in _LIBRARIES},
        "sha256": _checksums(root, sizes),
    }
    (root / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _coco(split: str, compositions: list[Composition], labels: np.ndarray) -> dict[str, Any]:
    """The content of a COCO annotation file. Images, annotations and categories are numbered from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, composition in enumerate(compositions, start=1):
        images.append(
            {
                "id": image_id,
                "file_name": _file_name(image_id),
                "width": IMAGE_SIZE,
                "height": IMAGE_SIZE,
                "photo": composition.photo,
                "distractor": composition.distractor.sample if composition.distractor else None,
            }
        )
        for drawn in composition.objects:
            x0, y0, x1, y1 = drawn.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(labels[drawn.sample]) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "sample": drawn.sample,
                }
            )
    return {
        "info": {"description": f"{_NAME} {split}", "version": str(DATASET_VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "digit"} for i, name in enumerate(CLASSES, start=1)],
    }
