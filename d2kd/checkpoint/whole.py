"""Files that are whole or absent, and archives that are read only if they are what was written."""

from __future__ import annotations

import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

__all__ = ["DamagedError", "check_whole", "save_whole", "whole_file"]


class DamagedError(ValueError):
    """A file that is not what was written."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """
    A new file beside ``path``, to write to inside; leaving renames it to ``path``, an exception removes it and leaves
    ``path`` as it was. What was written is on the disk, and so is its name, before this returns.

    Args:
        path: replaced if it exists; its folder is made. If it is a link, the link is replaced, not what it points to.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that nobody can foresee, of a file that did not exist: nothing is overwritten, no link followed.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def save_whole(entries: Mapping[str, Any], path: str | Path) -> None:
    """
    ``torch.save`` into a file that is whole or absent.

    Args:
        entries: such as ``{"model": state_dict}``.
        path: replaced if it exists; its folder is made.

    Raises:
        OSError: the disk is full, or the folder cannot be written; what was at ``path`` is there still.
    """
    try:
        with whole_file(path) as partial:
            try:
                with open(partial, "wb") as file:  # by its name torch would write that name, too
                    torch.save(entries, file)
            except RuntimeError:  # torch's, which does not say that the disk is full
                with open(partial, "ab") as more:
                    more.write(bytes(1 << 20))
                raise
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error.strerror or error}. What was written before is whole."
        ) from error


def check_whole(path: str | Path) -> None:
    """
    Read a file that ``torch.save`` wrote, and compare every entry with its checksum; torch reads it without. A file
    that is no zip archive (written before torch 1.6, or by numpy or pickle) has no checksums and is not checked.

    Raises:
        DamagedError: it is empty, cut, or holds other bytes than were written.
    """
    size = os.path.getsize(path)
    if size < 4:
        raise DamagedError(f"{path} is damaged: it has only {size} bytes.")
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if not archive:
        return
    try:
        with zipfile.ZipFile(path) as entries:
            bad = entries.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise DamagedError(f"{path} is damaged: its {size} bytes are no whole archive ({error}).") from error
    if bad is not None:
        raise DamagedError(f"{path} is damaged: its entry {bad} is not what was written.")


def _sync_folder(folder: Path) -> None:
    """Put the folder's list of names on the disk, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
