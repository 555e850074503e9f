"""What methods reach at several lengths of the schedule: the final metric against the cost of training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from d2kd.checkpoint import whole_file
from d2kd.config import ALONE
from d2kd.experiments.figures import COST_LABELS, distilled_methods, line_style
from d2kd.experiments.metrics import metric_name
from d2kd.experiments.plan import TEACHER, method_label, stretched_for
from d2kd.experiments.statistics import final_value, mean_std

__all__ = ["LengthPoint", "by_length", "plot_ceiling"]

#: Iterations, mean cost, mean metric, and its standard deviation over seeds.
LengthPoint = tuple[int, float, float, float]


def by_length(runs: Sequence[Mapping[str, Any]], key: str = "values") -> dict[str, list[LengthPoint]]:
    """
    Method -> a point for each length of its schedule, from the shortest on.

    Args:
        runs: of one config, of :func:`d2kd.experiments.collect`; those without cost or metric are left out.
        key: see :func:`d2kd.experiments.statistics.final_value`.

    Raises:
        ValueError: two runs of one method, seed and length.
    """
    found: dict[tuple[str, int], dict[int, tuple[float, float]]] = {}
    for run in runs:
        if run["method"] == TEACHER or stretched_for(run["method"]):
            continue
        seeds = found.setdefault((run["method"], run["max_iter"]), {})
        if run["seed"] in seeds:
            raise ValueError(
                f"{run['config']} has two runs of {method_label(run['method'])}, seed {run['seed']}, "
                f"{run['max_iter']} iterations: draw results of other overrides in a figure of their own."
            )
        value = final_value(run, key)
        if value is not None and run["cost_seconds"] is not None:
            seeds[run["seed"]] = run["cost_seconds"], value
    points: dict[str, list[LengthPoint]] = {}
    for (method, length), seeds in sorted(found.items(), key=lambda item: item[0][1]):
        costs, values = mean_std([x for x, _ in seeds.values()]), mean_std([y for _, y in seeds.values()])
        if costs is not None and values is not None:
            points.setdefault(method, []).append((length, costs[0], values[0], values[1] or 0.0))
    return points


@rc_context({"text.parse_math": False})  # names may have dollar signs
def plot_ceiling(path: str | Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """
    A row for each config: the final metric against the cost on a logarithmic axis, a line for each method over its
    schedules' lengths, with bars of one standard deviation over seeds; a teacher is a dotted line. Two panels where
    other data than dataloader.test were reported: first dataloader.test, then these. The student alone is numbered.

    Args:
        path: the PNG to write.
        runs: results of one or several ``d2kd compare``.

    Raises:
        ValueError: two runs of one method, seed and length, or none with a cost; or a config's runs differ in metric,
            device or the data of their values, or are of two configs of one name.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        rows.setdefault(run["config"], []).append(run)
    for config, of_config in rows.items():
        _check_file(config, of_config)
    keys = {
        config: {
            _only(of_config, "metrics_on", "dataloader.test"): "metrics",
            _only(of_config, "values_on", "--report"): "values",
        }
        for config, of_config in rows.items()
    }
    columns = max(map(len, keys.values()))
    figure = Figure(figsize=(2 + 4.7 * columns, 3.9 * len(rows) + 0.7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    methods = distilled_methods(runs)
    handles: dict[str, Artist] = {}
    for row, (config, of_config) in zip(panels, rows.items()):
        metric, device = _only(of_config, "metric", "train.best_metric"), _only(of_config, "device", "train.device")
        for panel in row[len(keys[config]) :]:
            panel.remove()
        for panel, (where, key) in zip(row, keys[config].items()):
            _plot_lines(panel, by_length(of_config, key), methods)
            for run in of_config:
                value = final_value(run, key)
                if run["method"] == TEACHER and value is not None:
                    panel.axhline(value, color="black", linestyle=":", linewidth=1.2, label=TEACHER)
            panel.set_title(textwrap.fill(f"{config}, on {where}", 60), loc="left", fontsize=10)
            panel.set_xlabel(f"{COST_LABELS[device]} (logarithmic)")
            handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels())}
        row[0].set_ylabel(f"final {metric_name(metric)}")
    if not handles:
        raise ValueError("None of these runs has a cost and a final metric: there is nothing to draw.")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles)))
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _check_file(config: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """A config may have been named by a longer or shorter path; a teacher's result has none."""
    files = list(dict.fromkeys(run["config_file"] for run in runs if "config_file" in run))
    for one, other in combinations(files, 2):
        if any(x != y for x, y in zip(reversed(Path(one).parts), reversed(Path(other).parts))):
            raise ValueError(f"{config} has results of {one} and of {other}: draw a figure of each.")


def _only(runs: Sequence[Mapping[str, Any]], key: str, field: str) -> str:
    """What all runs of a config have there; ``field`` is how d2kd compare is told."""
    found = list(dict.fromkeys(run[key] for run in runs))
    if len(found) > 1:
        raise ValueError(
            f"{runs[0]['config']} has results with {key.replace('_', ' ')} {found[0]!r} and {found[1]!r}, expected "
            f"one: draw a figure of each, or run d2kd compare again with one {field}."
        )
    return found[0]


def _plot_lines(panel: Axes, lines: Mapping[str, Sequence[LengthPoint]], methods: Sequence[str]) -> None:
    for method in sorted(lines, key=lambda x: x != ALONE):
        lengths, costs, values, stds = (np.array(x) for x in zip(*lines[method]))
        style = line_style(method, methods)
        style |= {"markersize": 6, "linewidth": 1.7, "label": method_label(method)}
        panel.errorbar(costs, values, yerr=stds, capsize=3, elinewidth=1.2, **style)
        for length, cost, value in zip(lengths, costs, values) if method == ALONE else ():
            first = length == lengths[0]
            panel.annotate(  # above the line, where costlier methods are not; the first inside the panel
                f"{length} iterations" if first else f"{length / lengths[0]:.3g}×",
                (cost, value),
                xytext=(6, -13) if first else (-5, 5),
                textcoords="offset points",
                ha="left" if first else "right",
                fontsize=8,
                color=style["color"],
            )
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.06, y=0.1)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
