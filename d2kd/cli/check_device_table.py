"""What the parts of d2kd check --device report, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d2kd.experiments import markdown_table

__all__ = ["Part", "Row", "to_markdown"]

_SAID = {True: "ok", False: "FAILED", None: "not run"}


@dataclass(frozen=True)
class Row:
    """
    One thing that was checked.

    Attributes:
        what: was checked.
        found: the result, in words.
        ok: whether it is within its limit; None: it was not run, and ``found`` says why.
        limit: of ``found``; "" without one.
        figures: behind ``found``, for the json.
    """

    what: str
    found: str
    ok: bool | None
    limit: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """The rows of a part, and how long it took."""

    seconds: float
    rows: list[Row]

    @property
    def failed(self) -> bool:
        return any(row.ok is False for row in self.rows)


def to_markdown(parts: Mapping[str, Part]) -> str:
    rows: list[Sequence[str]] = [
        [name, row.what, row.found, row.limit, _SAID[row.ok]] for name, part in parts.items() for row in part.rows
    ]
    return markdown_table(["part", "what", "found", "limit", ""], rows)
