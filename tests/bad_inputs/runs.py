"""Commands on the tiny run of :mod:`tests.bad_inputs.tiny`, changed in one thing. Not a test."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import Tensor

from d2kd.__main__ import main
from tests.bad_inputs.tiny import write_run

__all__ = ["Arguments", "distill", "resume", "train", "weights"]

Arguments = Callable[[Path], list[str]]


def train(
    *overrides: str,
    options: Sequence[str] = (),
    more: str = "",
    change: Callable[[Path], object] | None = None,
) -> Arguments:
    """
    ``d2kd train``.

    Args:
        more: Python at the config's end.
        change: is given the folder with the run's files.
    """

    def arguments(folder: Path) -> list[str]:
        config = write_run(folder, more)
        if change is not None:
            change(folder)
        return ["train", "--config-file", config, *options, *overrides]

    return arguments


def distill(student: str, teacher: str, method: str, *overrides: str, more: str = "") -> Arguments:
    """``d2kd train`` of a pair of nodes of :mod:`tests.nodes`, given as Python; the heads have two blocks."""
    pair = f"""
import d2kd
from tests.nodes import fcos, gfl, retinanet

model = d2kd.distill({student}, teacher={teacher}, teacher_checkpoint="teacher.pth", method={method!r})
for _loss in model.losses.values():
    if "tail" in _loss:
        _loss.tail = 1
"""

    def save(folder: Path) -> None:
        names: dict[str, object] = {}
        exec(f"from tests.nodes import fcos, gfl, retinanet\nnode = {teacher}", names)
        torch.save({"model": weights(names["node"])}, folder / "teacher.pth")

    return train(*overrides, more=pair + more, change=save)


def resume(change: Callable[[Path], object], *overrides: str) -> Arguments:
    """``d2kd train --resume`` of a run of one iteration, to two; ``change`` is given its folder."""

    def arguments(folder: Path) -> list[str]:
        command = train("train.max_iter=1")(folder)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert main(command) == 0
        change(folder)
        return [*command[:-1], "--resume", *overrides, "train.max_iter=2"]

    return arguments


def weights(node: DictConfig) -> dict[str, Tensor]:
    """A state dict of the detector of a node."""
    return dict(instantiate(node).state_dict())
