"""What the parts of d2kd check --device report, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from d2kd.experiments import markdown_table

__all__ = ["Part", "Row", "not_run", "to_markdown"]

_SAID = {True: "ok", False: "FAILED", None: "not run"}


class Row(TypedDict):
    """
    One thing that was checked.

    Attributes:
        what: was checked.
        found: the result, in words.
        limit: of ``found``; "" without one.
        ok: whether it is within; None: it was not run, and ``found`` says why.
        figures: behind ``found``, for the json.
    """

    what: str
    found: str
    limit: str
    ok: bool | None
    figures: NotRequired[dict[str, Any]]


class Part(TypedDict):
    """The rows of a part, and how long it took."""

    seconds: float
    rows: list[Row]


def not_run(what: str, why: str) -> list[Row]:
    return [Row(what=what, found=why, limit="", ok=None)]


def to_markdown(parts: Mapping[str, Part]) -> str:
    rows: list[Sequence[str]] = [
        [name, row["what"], row["found"], row["limit"], _SAID[row["ok"]]]
        for name, part in parts.items()
        for row in part["rows"]
    ]
    return markdown_table(["part", "what", "found", "limit", ""], rows)
