"""The tables that d2kd benchmark prints, in markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from d2kd.cli.benchmark_cases import STUDENT, TEACHER
from d2kd.cli.benchmark_data import title_of
from d2kd.cli.benchmark_kernels import CHECKPOINTED, SHIPPED, TEXTBOOK

__all__ = ["to_markdown"]


def to_markdown(result: Mapping[str, Any]) -> str:
    """All tables of a result, those for users first."""
    sections = [f"> Warning: {warning}" for warning in result["warnings"]]
    for size, pairs in result["sizes"].items():
        sections += _of_size(size, pairs)
    if result["growth"]:
        sections += ["## Growth", *(_growth(title_of(name), rows) for name, rows in result["growth"].items())]
    if result["kernels"]:
        sections += ["## Kernels", _kernels(result["kernels"])]
    return "\n\n".join(sections)


def _of_size(size: str, pairs: Mapping[str, Any]) -> list[str]:
    def table(kind: str, cell: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> str:
        """A column for each detector and a row for each method, part or engine."""
        longest_first = sorted((pair[kind] for pair in pairs.values()), key=len, reverse=True)
        names = dict.fromkeys(name for found in longest_first for name in found)
        rows = [
            [name, *(cell(pair, pair[kind][name]) if name in pair[kind] else "" for pair in pairs.values())]
            for name in names
        ]
        return _table([kind.removesuffix("s"), *map(title_of, pairs)], rows)

    first = next(iter(pairs.values()))
    return [
        f"## {size}: {first['detectors']}, {first['size']}",
        "A distilled step's time over that of the student alone, and what its peak memory is above the student's:",
        table("methods", lambda _, x: f"{x['time_over_student']:.2f}x, {_mib(x['peak_above_student']):+.1f} MiB"),
        "Its time over the floor, and what its peak memory is above the student's in sets of class-logit maps:",
        table(
            "methods",
            lambda pair, x: f"{x['time_over_floor']:.3f}, {x['peak_above_student'] / pair['logit_bytes']:.1f}",
        ),
        f"The parts of a step, and their time over {STUDENT} and {TEACHER} together:",
        table("parts", lambda _, x: f"{_ms(x['seconds'])} ({x['of_student_and_teacher']:.1%})"),
        f"{TEACHER.capitalize()} by its engine, over the plain one:",
        table("engines", lambda _, x: f"{x['time_over_plain']:.2f}"),
    ]


def _growth(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """One detector's rows."""
    cells = [
        [
            f"{x['time_over_floor']:.3f}, {_ms(x['regions_and_losses'])}, {_mib(x['peak_above_student']):+.1f} MiB"
            for x in row["methods"].values()
        ]
        for row in rows
    ]
    return "Time over the floor; regions and losses; peak memory above the student's:\n\n" + _table(
        [title, *rows[0]["methods"]], [[row["size"], *texts] for row, texts in zip(rows, cells)]
    )


def _kernels(kernels: Mapping[str, Any]) -> str:
    header = ["kernel", "time", "peak", f"time / {TEXTBOOK}", "peak", f"time / {CHECKPOINTED}", "peak"]
    rows = []
    for name, found in kernels.items():
        rows.append([name, _ms(found["seconds"]), f"{_mib(found['peak_bytes']):.1f} MiB"])
        for form in (TEXTBOOK, CHECKPOINTED):
            rows[-1] += [f"{found[form][what]:.2f}" for what in ("time", "peak")]
    return f"{SHIPPED}'s, forward and backward, against the formula in plain torch:\n\n" + _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _mib(count: int) -> float:
    return count / 2**20
