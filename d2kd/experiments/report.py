"""From the metrics that runs have logged to curves and tables of methods compared over paired seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ALONE",
    "METRICS",
    "TEACHER",
    "CurvePoint",
    "Row",
    "curve",
    "last_quarter",
    "markdown_table",
    "method_label",
    "notes",
    "paired_p_value",
    "read_metrics",
    "resample",
    "stretched",
    "summarize",
    "to_markdown",
]

ALONE = "alone"  # the method of the undistilled student
TEACHER = "teacher"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_STRETCHED = "alone_as_long_as_"


class CurvePoint(NamedTuple):
    """AP of an evaluation after ``iteration`` iterations, which had cost ``cpu_seconds`` (None: unknown)."""

    iteration: int
    cpu_seconds: float | None
    ap: float


@dataclass(frozen=True)
class Row:
    """
    A method on a detector, over seeds. Pairs are (mean, sample standard deviation); the deviation of a single
    value is None, and a pair is None where no run has the value.
    """

    detector: str
    method: str
    seeds: tuple[int, ...]
    iterations: tuple[int, int]  # the least and the most of its runs
    values: Mapping[str, tuple[float, float | None] | None]  # AP..., seconds_per_iteration, cpu_seconds
    parameters: int
    gain: tuple[float, float | None] | None  # AP above the student alone of the same seeds; None for itself
    paired_seeds: int
    p_value: float | None


def stretched(method: str) -> str:
    """The name of "the student alone, trained for as long as ``method`` takes"."""
    return _STRETCHED + method


def method_label(method: str) -> str:
    """What tables and figures call a method."""
    if method.startswith(_STRETCHED):
        return f"student alone, at {method.removeprefix(_STRETCHED)}'s cost"
    return "student alone" if method == ALONE else method


def read_metrics(path: str | Path, max_iter: int) -> dict[int, dict[str, Any]]:
    """
    What a run has logged to its ``metrics.json``; empty if there is no such file.

    Args:
        path: the file; after a resume, its later lines replace the earlier ones of the same iteration.
        max_iter: length of the run.

    Returns:
        Number of finished iterations -> scalars, in ascending order.
    """
    records: dict[int, dict[str, Any]] = {}
    if not Path(path).is_file():
        return records
    for line in Path(path).read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, written by a run that was killed; its resume logs it again
        # A step's own index is logged, except after the last step: there it is the number of steps.
        done = min(record["iteration"] + 1, max_iter)
        records[done] = {**records.get(done, {}), **record}
    return dict(sorted(records.items()))


def curve(records: Mapping[int, Mapping[str, Any]]) -> list[CurvePoint]:
    """
    The evaluations among ``records`` (of :func:`read_metrics`). Their CPU seconds are interpolated, since the
    cost is logged every few iterations only.
    """
    costs = [(done, r["cost/cpu_seconds"]) for done, r in records.items() if "cost/cpu_seconds" in r]
    xs, ys = zip(*[(0, 0.0), *costs])
    return [
        CurvePoint(done, float(np.interp(done, xs, ys)) if costs else None, float(r["bbox/AP"]))
        for done, r in records.items()
        if "bbox/AP" in r
    ]


def resample(runs: Sequence[Sequence[CurvePoint]]) -> np.ndarray:
    """
    Several runs' curves at the same fractions of their schedules, which may differ in length.

    Args:
        runs: curves; each ends with the run.

    Returns:
        (runs, points, 3): iteration, CPU seconds (NaN where unknown), AP.
    """
    count = min(len(run) for run in runs)
    fractions = np.arange(1, count + 1) / count
    out = []
    for run in runs:
        table = np.array([(p.iteration, math.nan if p.cpu_seconds is None else p.cpu_seconds, p.ap) for p in run])
        at = fractions * table[-1, 0]
        out.append(np.stack([np.interp(at, table[:, 0], column) for column in table.T], axis=1))
    return np.stack(out)


def last_quarter(points: Sequence[CurvePoint]) -> float | None:
    """AP that the last quarter of a run's schedule added; None without an evaluation before it."""
    end = points[-1].iteration
    if points[0].iteration > 0.75 * end:
        return None
    xs, ys = [p.iteration for p in points], [p.ap for p in points]
    return ys[-1] - float(np.interp(0.75 * end, xs, ys))


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of a t-test of the differences of pairs; None for fewer than 2, or for equal ones."""
    if len(differences) < 2 or stdev(differences) == 0:
        return None
    from scipy import stats  # scikit-learn's, which the digits need too; the tables of one seed do without

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def summarize(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """
    Args:
        runs: one mapping a run: detector, method, seed, max_iter, parameters, seconds_per_iteration,
            cpu_seconds and :data:`METRICS` (None where a value does not exist).

    Returns:
        One row per detector and method, in the order of their first runs.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["detector"], run["method"]), []).append(run)
    rows = []
    for (detector, method), group in groups.items():
        alone = {run["seed"]: run["AP"] for run in groups.get((detector, ALONE), [])}
        differences = [
            run["AP"] - alone[run["seed"]] for run in group if method not in (ALONE, TEACHER) and run["seed"] in alone
        ]
        rows.append(
            Row(
                detector=detector,
                method=method,
                seeds=tuple(sorted(run["seed"] for run in group)),
                iterations=(min(run["max_iter"] for run in group), max(run["max_iter"] for run in group)),
                values={
                    key: _mean_std([run[key] for run in group if run[key] is not None])
                    for key in (*METRICS, "seconds_per_iteration", "cpu_seconds")
                },
                parameters=group[0]["parameters"],
                gain=_mean_std(differences),
                paired_seeds=len(differences),
                p_value=paired_p_value(differences),
            )
        )
    return rows


def notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    What a reader has to know beside the table, from the results' ``curve``, ``git`` and ``versions``: how much
    of the student's AP a longer schedule would still add, what the pairs are, and where the figures come from.
    """
    found = []
    for detector in dict.fromkeys(run["detector"] for run in runs):
        curves = [run["curve"] for run in runs if (run["detector"], run["method"]) == (detector, ALONE)]
        added = [last_quarter([CurvePoint(*point) for point in points]) for points in curves]
        added = [value for value in added if value is not None]
        if added:
            text = _cell(_mean_std(added), 1, "+")
            found.append(f"{detector}: the last quarter of its schedule added {text} AP (val) to the student alone.")
    if any(run["method"] not in (ALONE, TEACHER) for run in runs):
        found.append(
            "gain: over the student alone of the same seed (same initial weights, same data in the same order); "
            "± is the standard deviation over seeds, p that of a two-sided paired t-test."
        )
    made = [run["git"] for run in runs if run.get("git")]
    if made:
        dirty = " with uncommitted changes" if any(state["dirty"] for state in made) else ""
        found.append(f"d2kd at {', '.join(sorted({state['commit'][:10] for state in made}))}{dirty}.")
    libraries = {", ".join(f"{k} {v}" for k, v in run["versions"].items()) for run in runs}
    found.append(f"{'; '.join(sorted(libraries))}.")
    return found


def _mean_std(values: Sequence[float]) -> tuple[float, float | None] | None:
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None


def _cell(pair: tuple[float, float | None] | None, digits: int, sign: str = "") -> str:
    if pair is None:
        return "-"
    mean, std = pair
    return f"{mean:{sign}.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _p_cell(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; metrics that no row has are left out."""
    metrics = [key for key in METRICS if key == "AP" or any(row.values[key] for row in rows)]
    header = ["detector", "model", "seeds", "iterations", "AP", "gain", "p (paired)", *metrics[1:]]
    header += ["parameters", "s/it", "training CPU s"]
    lines = []
    for row in rows:
        least, most = row.iterations
        lines.append(
            [
                row.detector,
                method_label(row.method),
                str(len(row.seeds)),
                str(least) if least == most else f"{least}-{most}",
                _cell(row.values["AP"], 1),
                _cell(row.gain, 1, "+"),
                _p_cell(row.p_value),
                *(_cell(row.values[key], 1) for key in metrics[1:]),
                f"{row.parameters / 1e6:.2f} M",
                _cell(row.values["seconds_per_iteration"], 3),
                _cell(row.values["cpu_seconds"], 0),
            ]
        )
    return markdown_table(header, lines)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table whose columns are aligned in a terminal as well: words left, numbers right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    words = [all(line[i][:1].isalpha() for line in lines) for i in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, words)]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if left else "-" * (w - 1) + ":" for w, left in zip(widths, words)]
    return "\n".join([render(header), render(rule), *map(render, lines)]) + "\n"
