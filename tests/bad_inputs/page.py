"""docs/bad_inputs.md, from the cases."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bad_inputs.case import AREAS, BadInput

__all__ = ["page"]

HEAD = """\
# Bad inputs

What d2kd says to {count} things that people get wrong. A refusal is one line on stderr, with exit status 2; it comes
before anything is trained where that can be known then, and changes no file that was there. `--traceback` shows where
in the code it was raised. In the rows `mine.py` is a distilled config that trains, `teacher.pth` its teacher, and
`birds_train` and `birds_val` its data. Each row is a test; `python3 -m tests.bad_inputs` makes this page.
"""


def page(cases: Sequence[BadInput]) -> str:
    """The text of the page: a table for each area."""
    parts = [HEAD.format(count=len(cases))]
    for area in AREAS:
        rows = [f"| {_cell(case.given)} | {_cell(_said(case))} |" for case in cases if case.area == area]
        if rows:
            parts.append("\n".join([f"## {area}\n", "| given | d2kd says |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _said(case: BadInput) -> str:
    """The sentence as a code span, with paths relative to the folder."""
    text = case.says.replace("{folder}/", "").replace("{folder}", "FOLDER")
    quotes = "``" if "`" in text else "`"
    return f"{quotes}{text}{quotes}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
