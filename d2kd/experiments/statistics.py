"""Methods compared over paired seeds: means, deviations, gains and their p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from d2kd.experiments.plan import ALONE, TEACHER

__all__ = ["METRICS", "MeanStd", "Row", "mean_std", "paired_p_value", "summarize"]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

#: Mean and sample standard deviation, None of a single value.
MeanStd = tuple[float, float | None]


@dataclass(frozen=True)
class Row:
    """
    A method on a detector, over seeds. What no run has is None.
    """

    detector: str
    method: str
    seeds: tuple[int, ...]
    iterations: tuple[int, int]  # the least and the most of its runs
    values: Mapping[str, MeanStd | None]  # AP..., seconds_per_iteration, cpu_seconds
    parameters: int
    gain: MeanStd | None  # AP above the student alone of the same seeds; None for itself
    paired_seeds: int
    p_value: float | None


def mean_std(values: Sequence[float]) -> MeanStd | None:
    """None of no values."""
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of a t-test of the differences of pairs; None for fewer than 2, or for equal ones."""
    if len(differences) < 2 or stdev(differences) == 0:
        return None
    from scipy import stats  # noqa: PLC0415 - optional: it comes with scikit-learn, and tables of one seed need no test

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
                    key: mean_std([run[key] for run in group if run[key] is not None])
                    for key in (*METRICS, "seconds_per_iteration", "cpu_seconds")
                },
                parameters=group[0]["parameters"],
                gain=mean_std(differences),
                paired_seeds=len(differences),
                p_value=paired_p_value(differences),
            )
        )
    return rows
