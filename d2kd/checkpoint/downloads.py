"""Downloads that are not what they should be."""

from __future__ import annotations

from pathlib import Path

from iopath.common.file_io import get_cache_dir

__all__ = ["forget_download"]


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
