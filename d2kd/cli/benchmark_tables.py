"""The tables that d2kd benchmark prints, in markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from d2kd.cli.benchmark_cases import STUDENT, TEACHER
from d2kd.cli.benchmark_data import title_of
from d2kd.cli.benchmark_kernels import CHECKPOINTED, SHIPPED, TEXTBOOK

__all__ = ["to_markdown"]


def to_markdown(result: Mapping[str, Any]) -> str:
    """All tables of a result, that for users first."""
    sections = [f"> Warning: {warning}" for warning in result["warnings"]]
    for title, note, kind, cell in BY_SIZE if result["sizes"] else ():
        sections += [f"## {title}", note]
        for size, pairs in result["sizes"].items():
            first = next(iter(pairs.values()))
            sections += [f"**{size}**: {first['detectors']}, {first['size']}", _by_detector(pairs, kind, cell)]
    if result["growth"]:
        note = "Time over the floor; regions and losses; peak memory above the student's:"
        sections += ["## Growth", note, *(_growth(title_of(name), rows) for name, rows in result["growth"].items())]
    if result["kernels"]:
        note = f"{SHIPPED}'s, forward and backward, against the formula in plain torch:"
        sections += ["## Kernels", note, _kernels(result["kernels"])]
    for detector, found in result["ranks"].items():
        sections += ["## Ranks", RANKS_NOTE, f"**{title_of(detector)}**: {found['size']}", _ranks(found["methods"])]
    return "\n\n".join(sections)


RANKS_NOTE = (
    "One batch shared by ranks: each term's mean over the first number of ranks, then its relative difference on "
    "others; of the gradients, the norm of their difference over their norm. What has a * reads statistics of a rank's "
    "images."
)


#: (pair, what was found of one of its methods, parts or engines) -> what the table says.
Cell = Callable[[Mapping[str, Any], Mapping[str, Any]], str]

#: Tables with a column for each detector and a row for each method, part or engine: title, note, which, cells.
BY_SIZE: Sequence[tuple[str, str, str, Cell]] = (
    (
        "Cost",
        "A distilled step's time over that of the student alone, and its peak memory above the student's:",
        "methods",
        lambda _, x: f"{x['time_over_student']:.2f}x, {_mib(x['peak_above_student'])}",
    ),
    (
        "Beyond the floor",
        "A distilled step's time over the floor, and its peak memory above the student's in sets of class-logit maps:",
        "methods",
        lambda pair, x: f"{x['time_over_floor']:.3f}, {x['peak_above_student'] / pair['logit_bytes']:.1f}",
    ),
    (
        "Parts of a step",
        f"Time, and its ratio to {STUDENT} and {TEACHER} together:",
        "parts",
        lambda _, x: f"{_ms(x['seconds'])} ({x['of_student_and_teacher']:.1%})",
    ),
    (
        "Engines of the teacher",
        f"Time over that of the plain {TEACHER}:",
        "engines",
        lambda _, x: f"{x['time_over_plain']:.2f}",
    ),
)


def _by_detector(pairs: Mapping[str, Any], kind: str, cell: Cell) -> str:
    longest_first = sorted((pair[kind] for pair in pairs.values()), key=len, reverse=True)
    names = dict.fromkeys(name for found in longest_first for name in found)
    rows = [
        [name, *(cell(pair, pair[kind][name]) if name in pair[kind] else "" for pair in pairs.values())]
        for name in names
    ]
    return _table([kind.removesuffix("s"), *map(title_of, pairs)], rows)


def _growth(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    def cells(row: Mapping[str, Any]) -> Iterable[str]:
        for x in row["methods"].values():
            yield f"{x['time_over_floor']:.3f}, {_ms(x['regions_and_losses'])}, {_mib(x['peak_above_student'])}"

    header = [f"{title}, {rows[0]['detectors']}", *rows[0]["methods"]]
    return _table(header, [[row["size"], *cells(row)] for row in rows])


def _kernels(kernels: Mapping[str, Any]) -> str:
    header = ["kernel", "time", "peak", f"time / {TEXTBOOK}", "peak", f"time / {CHECKPOINTED}", "peak"]
    rows = []
    for name, found in kernels.items():
        ratios = [f"{found[form][what]:.2f}" for form in (TEXTBOOK, CHECKPOINTED) for what in ("time", "peak")]
        rows.append([name, _ms(found["seconds"]), _mib(found["peak_bytes"]), *ratios])
    return _table(header, rows)


def _ranks(methods: Mapping[str, Any]) -> str:
    rows = []
    for method, found in methods.items():
        local = found["of_a_ranks_batch"]
        (_, first), *others = found["ranks"].items()
        for name, value in first["terms"].items():
            differences = [f"{x['term_differences'][name]:.1e}" for _, x in others]
            rows.append([method, name + "*" * (name in local), f"{value:.6g}", *differences])
        differences = [f"{x['gradient_difference']:.1e}" for _, x in others]
        rows.append([method, "gradients" + "*" * bool(local), "", *differences])
        rows.append([method, "s/it", *(f"{statistics.median(x['seconds']):.3f}" for x in found["ranks"].values())])
    counts = next(iter(methods.values()))["ranks"]
    return _table(["method", "of a step", *(f"{count} rank" + "s" * (count != "1") for count in counts)], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
