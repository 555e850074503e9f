"""Metrics that a run has logged, and its curve: a metric over the run's schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "COSTS",
    "CurvePoint",
    "align",
    "curve",
    "final_metrics",
    "last_quarter",
    "read_metrics",
]

#: Kind of device -> the logged scalar that is the cost of training on it.
COSTS = {"cpu": "cost/cpu_seconds", "cuda": "cost/wall_seconds"}


class CurvePoint(NamedTuple):
    """The metric of an evaluation after ``iteration`` iterations, which had cost ``cost`` seconds (None: unknown)."""

    iteration: int
    cost: float | None
    value: float


def read_metrics(path: str | Path, max_iter: int | None = None) -> dict[int, dict[str, Any]]:
    """
    What a run has logged to its ``metrics.json``; empty if there is no such file.

    Args:
        path: the file; after a resume, its later lines replace the earlier ones of the same iteration.
        max_iter: length of the run; None: what it has logged so far.

    Returns:
        Number of finished iterations -> scalars, in ascending order.
    """
    lines = list(_lines(path))
    if max_iter is None and lines:
        last = max(record["iteration"] for record in lines)
        # After the last step only evaluation and cost are logged.
        trained = any(record["iteration"] == last and "total_loss" in record for record in lines)
        max_iter = last + 1 if trained else last
    records: dict[int, dict[str, Any]] = {}
    for record in lines:
        # A step's own index is logged, except after the last step: there it is the number of steps.
        done = record["iteration"] + 1 if max_iter is None else min(record["iteration"] + 1, max_iter)
        records[done] = {**records.get(done, {}), **record}
    return dict(sorted(records.items()))


def final_metrics(path: str | Path, max_iter: int) -> dict[str, float]:
    """What the evaluation after the last iteration returned, as ``task/metric``; empty if the run did not log it."""
    found: dict[str, float] = {}
    for record in _lines(path):
        if record["iteration"] == max_iter:  # after the last step only evaluation and cost are logged
            found = {key: value for key, value in record.items() if key != "iteration" and key not in COSTS.values()}
    return found


def _lines(path: str | Path) -> Iterator[dict[str, Any]]:
    if not Path(path).is_file():
        return
    for line in Path(path).read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, written by a run that was killed; its resume logs it again
        if isinstance(record, dict) and type(record.get("iteration")) is int:
            yield record


def curve(records: Mapping[int, Mapping[str, Any]], metric: str, cost: str) -> list[CurvePoint]:
    """
    The evaluations among ``records`` (of :func:`read_metrics`). The scalar ``cost`` is interpolated, since it is
    logged every few iterations only.
    """
    costs = [(done, r[cost]) for done, r in records.items() if cost in r]
    xs, ys = zip(*[(0, 0.0), *costs])
    return [
        CurvePoint(done, float(np.interp(done, xs, ys)) if costs else None, float(r[metric]))
        for done, r in records.items()
        if metric in r
    ]


def align(runs: Sequence[Sequence[CurvePoint]]) -> np.ndarray:
    """
    The evaluations that all runs have, at the same fractions of their schedules. Lengths may differ; fractions may
    differ by 2 % of the schedule, since the iterations between two evaluations are a whole number.

    Args:
        runs: curves; each ends with the run.

    Returns:
        (runs, points, 3): iteration, cost in seconds (NaN where unknown), metric. The last point is the runs' end.
    """
    tables = [np.array([(p.iteration, math.nan if p.cost is None else p.cost, p.value) for p in run]) for run in runs]
    done = [table[:, 0] / table[-1, 0] for table in tables]
    nearest = [np.abs(done[0][:, None] - other).argmin(axis=1) for other in done]
    apart = [np.abs(done[0] - other[index]) for other, index in zip(done, nearest)]
    common = np.max(apart, axis=0) <= 0.02
    return np.stack([table[index[common]] for table, index in zip(tables, nearest)])


def last_quarter(points: Sequence[CurvePoint]) -> float | None:
    """
    What the last quarter of a run's schedule added to the metric; None without an evaluation before it, or where the
    metric has no value.
    """
    end = points[-1].iteration
    if points[0].iteration > 0.75 * end:
        return None
    xs, ys = [p.iteration for p in points], [p.value for p in points]
    added = ys[-1] - float(np.interp(0.75 * end, xs, ys))
    return None if math.isnan(added) else added
