"""The datasets of a config: loaded, and the digests of their labels."""

from __future__ import annotations

import hashlib
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from d2kd.config.nodes import dataset_names, made
from d2kd.data.formats import FORMATS
from d2kd.experiments.digests import sha256

__all__ = ["annotations_sha256", "load_data", "register_data", "tested_on"]

_PARTS = ("dataset", "unlabeled")


def load_data(cfg: DictConfig, config: str, *splits: str) -> None:
    """
    Load what ``dataloader.SPLIT`` reads, of each split. Data that is made at its first use is made.

    Args:
        config: the name of ``cfg``, for messages.

    Raises:
        ValueError: a dataset is not registered.
    """
    for key in (f"dataloader.{split}.{part}" for split in splits for part in _PARTS):
        made(OmegaConf.select(cfg, key, default=None), f"{config}: {key}")


def register_data(cfg: DictConfig, config: str, *splits: str) -> None:
    """:func:`load_data` where a dataset is not registered, as those are that are registered at their first use."""
    if any(name not in DatasetCatalog for name in _names(cfg, splits)):
        load_data(cfg, config, *splits)


def tested_on(cfg: DictConfig) -> str:
    """What tables and figures call the data that ``dataloader.test`` reads: the names of datasets, if it names some."""
    return ", ".join(dataset_names(cfg, "test")) or "dataloader.test"


def annotations_sha256(cfg: DictConfig, *splits: str) -> dict[str, str | None]:
    """
    Dataset -> digest of its labels, for those of the splits that are registered with a COCO json or by
    ``d2kd.data.register_labelled``.
    """
    found = {}
    for name in (name for name in _names(cfg, splits) if name in DatasetCatalog):
        metadata = MetadataCatalog.get(name)
        if labelled := metadata.get("labelled"):
            found[name] = _labels_sha256(Path(labelled["annotations"]), FORMATS[labelled["format"]])
        elif file := metadata.get("json_file"):
            found[name] = sha256(file)
    return found


def _names(cfg: DictConfig, splits: tuple[str, ...]) -> list[str]:
    return [name for split in splits for part in _PARTS for name in dataset_names(cfg, split, part)]


def _labels_sha256(path: Path, suffix: str) -> str | None:
    """Digest of a label file, or of those in a folder, by name."""
    if not path.is_dir():
        return sha256(str(path))
    files = sorted(file for file in path.rglob(f"*{suffix}") if file.is_file())
    lines = (f"{file.relative_to(path)} {sha256(str(file))}\n" for file in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
