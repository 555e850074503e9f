"""The checkpoints of a run: written whole, read only if whole, and the newest whole one found."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from d2kd.checkpoint.downloads import forget_download, local_path
from d2kd.checkpoint.layouts import LayoutError, check_start, check_weights
from d2kd.checkpoint.pickles import check_arrays, read_weights
from d2kd.checkpoint.whole import DamagedError, check_whole, save_whole, whole_file

__all__ = ["WholeCheckpointer", "checkpoint_names"]

logger = logging.getLogger(f"detectron2.{__name__}")

_TAG = "last_checkpoint"


class WholeCheckpointer(DetectionCheckpointer):
    """
    :class:`detectron2.checkpoint.DetectionCheckpointer` that writes a file whole or not at all, reads none that is
    damaged or runs code, and continues from the newest checkpoint that is whole. ``save_dir`` is a local folder.
    """

    _source = ""  # what is being loaded, as it was given
    _needed: Sequence[str] = ()  # which entries it must have beside the weights

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """
        See Detectron2's. A download that is refused is removed from the cache.

        Raises:
            DamagedError: the file is empty, cut, or holds other bytes than were written.
            LayoutError: it is no checkpoint as Detectron2 keeps them, would run code when it is read, or lacks what is
                to be loaded beside the weights.
            FileNotFoundError: a URL that does not answer.
        """
        self._source = path or ""
        self._needed = [] if checkpointables is not None else list(self.checkpointables)
        if path:
            local_path(path)
        return super().load(path, checkpointables)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth``, then its name into ``last_checkpoint``; on the main rank."""
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        parts = {"model": self.model, **self.checkpointables}
        save_whole({**{key: part.state_dict() for key, part in parts.items()}, **kwargs}, path)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with whole_file(Path(self.save_dir, _TAG)) as partial:
            partial.write_text(last_filename_basename)

    def has_checkpoint(self) -> bool:
        folder = Path(self.save_dir)
        return (folder / _TAG).exists() or bool(checkpoint_names(folder))

    def get_checkpoint_file(self) -> str:
        """
        The checkpoint to continue from: the one that ``last_checkpoint`` names, if it is whole and in this folder, else
        of those that are whole the one with the most iterations, with a warning that says why; "" if there is none.

        Raises:
            DamagedError: there are checkpoints, and none is whole.
        """
        folder = Path(self.save_dir)
        if not self.has_checkpoint():
            return ""
        try:
            last = _tagged(folder)
            check_whole(last)
            return str(last)
        except (DamagedError, OSError) as error:
            reason = str(error)
        iterations: dict[Path, int] = {}
        for name in checkpoint_names(folder):
            try:
                check_whole(folder / name)
                entries = torch.load(folder / name, map_location="cpu", mmap=True)
                iterations[folder / name] = entries["iteration"]
            except (DamagedError, OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s cannot be continued from: %s", folder / name, error)
        if not iterations:
            raise DamagedError(
                f"No checkpoint in {folder} can be continued from: {reason} To start anew, use another "
                "train.output_dir, or leave --resume out."
            )
        newest = max(iterations, key=lambda path: iterations[path])
        logger.warning("%s Going on from %s, iteration %d.", reason, newest, iterations[newest])
        return str(newest)

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            check_start(filename)
            check_whole(filename)
            # Detectron2 reads these two in ways of its own, the first without any check. Its own URLs are no exception:
            # the cache of downloads goes by the path alone, so another host's file may stand there.
            if filename.endswith(".pkl"):
                check_arrays(filename)
            elif filename.endswith(".pyth"):
                read_weights(filename)
            loaded = super()._load_file(filename)
            check_weights(loaded["model"], filename)
            if lacking := [name for name in self._needed if name not in loaded]:
                raise LayoutError(
                    f"{filename} has weights and no state of the {' and '.join(lacking)}, so that no run can go on "
                    "from it: train.init_checkpoint begins a new run with its weights, without --resume."
                )
        except (DamagedError, LayoutError) as error:
            raise type(error)(f"{error}{forget_download(self._source, filename)}") from error
        return loaded

    def _torch_load(self, f: str) -> Any:
        return read_weights(f)


def checkpoint_names(folder: Path) -> list[str]:
    """The names of a folder's checkpoints that a run continues from, oldest first; model_best.pth is none of them."""
    names = [path.name for path in folder.glob("*.pth")]
    return sorted(name for name in names if re.search(r"_(\d{7}|final)\.pth$", name))


def _tagged(folder: Path) -> Path:
    """
    The file that ``last_checkpoint`` names.

    Raises:
        DamagedError: the tag is missing, empty, or names no file of this folder.
    """
    tag = folder / _TAG
    if not tag.is_file():
        raise DamagedError(f"{tag} is missing, though {folder} has checkpoints.")
    name = tag.read_text(errors="replace").strip()
    path = folder / name
    if not name or "\0" in name or path.name != name or not path.is_file():
        raise DamagedError(f"{tag} says {name[:80]!r}, which is no file of {folder}.")
    return path
