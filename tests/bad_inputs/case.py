"""A bad input, and where the modules of this folder keep theirs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AREAS", "BadInput", "all_cases"]

#: The sections of docs/bad_inputs.md, in their order.
AREAS = (*("Command line", "Config", "Override", "Checkpoint", "Dataset", "Pairing", "Method", "Device", "Ranks"),)


@dataclass(frozen=True)
class BadInput:
    """
    Attributes:
        area: one of :data:`AREAS`.
        given: what the person gave, a phrase for the table.
        arguments: makes the files in an empty folder, which is the working directory; returns the arguments of
            ``d2kd``, the command's name first.
        says: the one line on stderr, whole, with ``{folder}`` for the folder; begins "d2kd train: ".
    """

    area: str
    given: str
    arguments: Callable[[Path], list[str]]
    says: str


def all_cases() -> list[BadInput]:
    """Those of each ``cases_*.py`` beside this file, its ``CASES``, by area."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    cases = [case for name in names for case in importlib.import_module(f"tests.bad_inputs.{name}").CASES]
    return sorted(cases, key=lambda case: AREAS.index(case.area))
