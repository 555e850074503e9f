"""The commit that results were made at."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TypedDict

__all__ = ["GitState", "git_state"]


class GitState(TypedDict):
    """A commit, and whether files differ from it."""

    commit: str
    dirty: bool


def git_state(folder: Path, *paths: str) -> GitState | None:
    """
    The commit of the repository that a folder is in; None if it is in none.

    Args:
        folder: any folder.
        paths: git's pathspecs of what counts as changed, relative to ``folder``; none for the whole repository.
    """

    def git(*argv: str) -> str:
        return subprocess.run(["git", *argv], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--", *paths) != ""}
    except (OSError, subprocess.CalledProcessError):
        return None
