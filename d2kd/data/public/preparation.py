"""Making the folder of a public data set: from its repository on GitHub, or from files that are here."""

from __future__ import annotations

import logging
import sys
import tempfile
import textwrap
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

from fvcore.common.download import download

from d2kd.data.public.conversion import LONG_SIDE, convert, copy_converted, find_fault, repository_in
from d2kd.data.public.dataset import public_root
from d2kd.data.public.sets import PublicSet

__all__ = ["prepare_public_data"]

logger = logging.getLogger(__name__)

#: Where the archive of a commit is: its bytes may change with the server's zip library, so it has no checksum here;
#: the images in it have.
ARCHIVE = "https://codeload.github.com/{repository}/zip/{commit}"


def prepare_public_data(
    public_set: PublicSet, source: str | Path | None = None, root: str | Path | None = None
) -> Path:
    """
    Make the data set's folder, complete or not at all; one that is there already is checked and kept.

    Args:
        source: the unpacked repository, its zip archive, or a folder of the data set that is already converted; None:
            the archive is downloaded.
        root: the folder that holds the data sets' folders: see :func:`get_public_data`.

    Returns:
        The data set's folder, absolute.

    Raises:
        ValueError: the folder exists and holds something else (it is left alone), or the source is not the data set.
        OSError: the download failed, a file is missing, or the disk is full.
    """
    folder = public_root(root) / public_set.name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if fault := find_fault(public_set, folder):
            raise ValueError(
                f"{folder} exists, but is not the data set {public_set.name}: {fault}. It is left alone: move it "
                "away, or choose another folder (--root, or the environment variable DETECTRON2_DATASETS)."
            )
        logger.info("%s has the data set already.", folder)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling: the same filesystem, so that the finished folder is moved into place in one step.
    with tempfile.TemporaryDirectory(prefix=f".{public_set.name}-", dir=folder.parent) as workspace:
        new = Path(workspace, "new")
        new.mkdir()
        _fill(public_set, None if source is None else Path(source).expanduser(), new, Path(workspace))
        (new / "README.md").write_text(_readme(public_set))
        new.rename(folder)
    return folder


def _fill(public_set: PublicSet, source: Path | None, new: Path, workspace: Path) -> None:
    if source is None:
        url = ARCHIVE.format(repository=public_set.repository, commit=public_set.commit)
        try:
            source = Path(download(url, str(workspace), filename="archive.zip", progress=sys.stderr.isatty()))
        except (OSError, HTTPException) as error:
            raise OSError(
                f"{url} cannot be downloaded: {error}. Download it by other means, and give it with --from."
            ) from error
    given = source
    if not source.exists():
        raise FileNotFoundError(f"--from is {source}, but there is no such file or folder.")
    if source.is_file():
        source = _unpacked(source, workspace / "archive")
    if (source / "train" / "annotations.json").is_file():
        if fault := find_fault(public_set, source):
            raise ValueError(f"{given} (--from) is not the data set {public_set.name}: {fault}.")
        copy_converted(source, new)
        return
    repository = repository_in(public_set, source)
    if repository is None:
        raise ValueError(
            f"{given} (--from) has neither train/annotations.json, as the data set has, nor "
            f"{public_set.folders[0][0]}/, as https://github.com/{public_set.repository} has."
        )
    convert(public_set, repository, new)


def _unpacked(archive: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as entries:
            entries.extractall(folder)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:  # the last: encrypted
        raise ValueError(f"{archive} is no whole zip archive ({error}): download it again.") from error
    return folder


def _readme(public_set: PublicSet) -> str:
    return f"""\
# {public_set.name}

{public_set.about}, of the classes {", ".join(public_set.classes)}.

- Origin: {public_set.origin}
- Licence: {public_set.licence}, see LICENSE
- Attribution: {public_set.attribution}
- Changes: images scaled to {LONG_SIDE} pixels on the long side and saved as JPEG again; labels converted to COCO json,
  boxes clipped to the image, boxes under one pixel left out; new names of some images, and a new split.

{textwrap.fill(f"Known limits: {public_set.limits}", 120)}
"""
