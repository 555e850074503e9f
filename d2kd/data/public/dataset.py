"""
Three small public data sets as Detectron2 datasets: ``cards``, ``aquarium`` and ``bccd``, each in the splits ``train``,
``val`` and ``test``. ``d2kd data get cards`` makes the files; docs/real_data.md says what they are. On disk::

    SPLIT/annotations.json   COCO json
    SPLIT/images/*.jpg
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances

from d2kd.data.public.sets import SETS, SPLITS, PublicSet

__all__ = ["get_public_data", "public_root", "register_public_data"]


def get_public_data(
    names: str | Sequence[str], filter_empty: bool = False, root: str | Path | None = None
) -> list[dict]:
    """
    Register and load splits of a public data set. A config's data loader calls it, so importing a config has no side
    effect::

        dataloader.train.dataset = L(get_public_data)(names="cards_train")

    Args:
        names: one or several of ``cards_train``, ``aquarium_val``, ``bccd_test``, ...
        filter_empty: leave out images without objects, as Detectron2's option does; aquarium has one.
        root: the folder that holds the data sets' folders; by default ``$DETECTRON2_DATASETS``, or ``datasets``
            without it.
    Returns:
        Detectron2's dataset dicts.
    Raises:
        ValueError: there is no such split.
        FileNotFoundError: its files are not there.
    """
    names = [names] if isinstance(names, str) else list(names)
    wanted = dict.fromkeys(_set_of(name) for name in names)
    for public_set in wanted:
        folder = public_root(root) / public_set.name
        for split in SPLITS:
            if not (folder / split / "annotations.json").is_file():
                raise FileNotFoundError(
                    f"{folder} has no {split}/annotations.json: make the data set with `d2kd data get "
                    f"{public_set.name}`, or set the environment variable DETECTRON2_DATASETS to the folder that has "
                    f"{public_set.name}/."
                )
        register_public_data(public_set, folder)
    return get_detection_dataset_dicts(names, filter_empty=filter_empty)


def register_public_data(public_set: PublicSet, folder: Path) -> None:
    """
    Register the splits with Detectron2 for the files in ``folder``; another folder replaces one that was registered
    before. Files are not read here.
    """
    for split in SPLITS:
        name, images = f"{public_set.name}_{split}", str(folder / split / "images")
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("image_root") == images:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        metadata = {"thing_classes": list(public_set.classes)}
        register_coco_instances(name, metadata, str(folder / split / "annotations.json"), images)


def public_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets' folders, absolute: see :func:`get_public_data`."""
    return Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser().resolve()


def _set_of(name: str) -> PublicSet:
    set_name, _, split = name.rpartition("_")
    if set_name not in SETS or split not in SPLITS:
        raise ValueError(
            f"There is no public data set {name!r}: expected one of {', '.join(SETS)}, followed by "
            f"{', '.join(f'_{split}' for split in SPLITS[:-1])} or _{SPLITS[-1]}."
        )
    return SETS[set_name]
