"""Metrics that a run has logged, and its AP over its schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CurvePoint", "curve", "last_quarter", "read_metrics", "resample"]


class CurvePoint(NamedTuple):
    """AP of an evaluation after ``iteration`` iterations, which had cost ``cpu_seconds`` (None: unknown)."""

    iteration: int
    cpu_seconds: float | None
    ap: float


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
