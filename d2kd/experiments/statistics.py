"""Methods compared over paired seeds: means, deviations, gains and their p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from d2kd.config import ALONE
from d2kd.experiments.metrics import COCO_METRICS
from d2kd.experiments.plan import TEACHER

__all__ = ["MeanStd", "Row", "final_value", "mean_std", "metric_columns", "paired_gains", "paired_p_value", "summarize"]

#: Mean and sample standard deviation, None of a single value.
MeanStd = tuple[float, float | None]


@dataclass(frozen=True)
class Row:
    """
    A method on a config, over seeds. What no run has is None.
    """

    config: str
    method: str
    seeds: tuple[int, ...]
    iterations: tuple[int, int] | None  # the least and the most of its runs
    values: Mapping[str, MeanStd | None]  # the metrics' columns, seconds_per_iteration, cost_seconds
    parameters: int
    gain: MeanStd | None  # of the metric, above the student alone of the same seeds; None for itself
    paired_seeds: int  # which the gain is of
    p_value: float | None


def metric_columns(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    The metrics that a table of these runs shows: theirs, then COCO's of boxes where an evaluator returned those (AP by
    class is left out), else all; without metrics that no run has.

    Args:
        runs: see :func:`summarize`.
    """
    there = dict.fromkeys(key for run in runs for key, value in run["values"].items() if value is not None)
    metrics = [run["metric"] for run in runs]
    return list(dict.fromkeys([*metrics, *([key for key in COCO_METRICS if key in there] or there)]))


def final_value(run: Mapping[str, Any], key: str = "values") -> float | None:
    """
    A run's metric in the end; None where it has none.

    Args:
        run: see :func:`summarize`.
        key: of the metrics: "values" as reported, "metrics" on dataloader.test.
    """
    return run[key].get(run["metric"])


def mean_std(values: Sequence[float]) -> MeanStd | None:
    """None of no values."""
    if not values:
        return None
    return fmean(values), stdev(values) if len(values) > 1 else None


def paired_gains(runs: Sequence[Mapping[str, Any]], method: str) -> list[float]:
    """
    What a method's runs have above the student alone of the same seeds.

    Args:
        runs: of one config.
    """
    alone = {run["seed"]: final_value(run) for run in runs if run["method"] == ALONE}
    pairs = [(final_value(run), alone.get(run["seed"])) for run in runs if run["method"] == method]
    return [value - base for value, base in pairs if value is not None and base is not None]


def paired_p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of a t-test of the differences of pairs; None for fewer than 2, or for equal ones."""
    if len(differences) < 2 or stdev(differences) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def summarize(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """
    Args:
        runs: one mapping a run: config, method, seed, max_iter, parameters, seconds_per_iteration, cost_seconds,
            metric, values ("task/metric" -> value; None where a value does not exist).

    Returns:
        One row per config and method, in the order of their first runs.
    """
    columns = metric_columns(runs)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["config"], run["method"]), []).append(run)
    rows = []
    for (config, method), group in groups.items():
        of_config = [run for run in runs if run["config"] == config]
        differences = [] if method in (ALONE, TEACHER) else paired_gains(of_config, method)
        iterations = [run["max_iter"] for run in group if run["max_iter"] is not None]
        costs = {key: [run[key] for run in group] for key in ("seconds_per_iteration", "cost_seconds")}
        values = {key: [run["values"].get(key) for run in group] for key in columns}
        rows.append(
            Row(
                config=config,
                method=method,
                seeds=tuple(sorted(run["seed"] for run in group if run["seed"] is not None)),
                iterations=(min(iterations), max(iterations)) if iterations else None,
                values={
                    key: mean_std([value for value in found if value is not None])
                    for key, found in {**values, **costs}.items()
                },
                parameters=group[0]["parameters"],
                gain=mean_std(differences),
                paired_seeds=len(differences),
                p_value=paired_p_value(differences),
            )
        )
    return rows
