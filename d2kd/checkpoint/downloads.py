"""Downloads that fail, or are not what they should be."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir

from d2kd.checkpoint.layouts import LayoutError

__all__ = ["forget_download", "local_path"]


def local_path(source: str) -> str:
    """
    Where a file is on this machine, which may not exist; a URL is downloaded.

    Args:
        source: a path or URL, with a query ("x.pkl?matching_heuristics=True") if need be: Detectron2's own grammar.

    Raises:
        FileNotFoundError: the URL does not answer, or is of a kind that Detectron2 does not know.
        LayoutError: it is a folder.
    """
    source = urlparse(source)._replace(query="").geturl()
    try:
        path = PathManager.get_local_path(source)
    except OSError as error:
        raise FileNotFoundError(
            f"{source} cannot be downloaded ({error}): correct the URL, try again, or give a file."
        ) from error
    if path == source and "://" in source:
        kind = source.partition("://")[0]
        raise FileNotFoundError(
            f"{source} cannot be read: Detectron2 knows no {kind}:// here; give the path of a copy."
        )
    if Path(path).is_dir():
        raise LayoutError(f"{source} is a folder, expected a file.")
    return path


def forget_download(source: str, path: str) -> str:
    """
    Remove a bad file from the cache of Detectron2's downloads, which would be taken again next time.

    Args:
        source: what the user gave; only of a URL is anything removed.
        path: the file on this machine.

    Returns:
        a sentence that says so, with a space before it; "" if nothing was removed.
    """
    if "://" not in source or not Path(path).resolve().is_relative_to(Path(get_cache_dir()).resolve()):
        return ""
    Path(path).unlink(missing_ok=True)  # another rank may have done so
    return f" The download of {source} is not kept: correct the URL, or try again."
