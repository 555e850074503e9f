"""Wrong ``key=value`` overrides of a good config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_run

__all__ = ["CASES"]


def train(*overrides: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["train", "--config-file", write_run(folder), *overrides]


def override(text: str, says: str) -> BadInput:
    return BadInput("Override", f"`{text}`", train(text), f"d2kd train: {says}")


CASES = [
    override("train.max_iter=0", "train.max_iter is 0, expected a whole number >= 1."),
    override(
        "train.max_itr=100",
        "The override 'train.max_itr=100' is for train.max_itr, which this config does not have: did you mean "
        "train.max_iter? A new key is +key=value.",
    ),
]
