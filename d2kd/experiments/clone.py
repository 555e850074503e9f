"""The clone of d2kd that experiments run in: its configs, its commit, its folder as the current one."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import TypedDict

import torch

__all__ = ["ROOT", "GitState", "enter_clone", "git_state"]

ROOT = Path(__file__).resolve().parents[2]


class GitState(TypedDict):
    """A commit, and whether files differ from it."""

    commit: str
    dirty: bool


@cache
def git_state(*paths: str) -> GitState | None:
    """
    The clone's commit; None where this is no clone.

    Args:
        paths: the files and folders that count as changed; none for all.
    """

    def git(*argv: str) -> str:
        return subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": git("status", "--porcelain", "--", *paths) != ""}
    except (OSError, subprocess.CalledProcessError):
        return None


def enter_clone() -> None:
    """
    Make the clone the current folder, wherever the command was typed: the configs' relative paths (teachers, data) are
    the clone's. And give evaluations one thread: a second gains nothing on images this small, and costs much where a
    core is busy.
    """
    torch.set_num_threads(1)
    if "DETECTRON2_DATASETS" in os.environ:
        os.environ["DETECTRON2_DATASETS"] = os.path.abspath(os.path.expanduser(os.environ["DETECTRON2_DATASETS"]))
    os.chdir(ROOT)
