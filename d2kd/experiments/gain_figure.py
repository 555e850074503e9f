"""What each method of an experiment gains, and what it costs, in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from d2kd.checkpoint import whole_file
from d2kd.config import ALONE
from d2kd.experiments.figures import COST_LABELS, distilled_methods, line_style
from d2kd.experiments.metrics import metric_name
from d2kd.experiments.plan import method_label, stretched, stretched_for
from d2kd.experiments.statistics import final_value, mean_std, paired_gains

__all__ = ["plot_gains"]


@rc_context({"text.parse_math": False})  # names may have dollar signs
def plot_gains(path: str | Path, runs: Sequence[Mapping[str, Any]]) -> bool:
    """
    A row of two panels for each config. Left, each method's gain over the student alone of the same seed; below it, if
    it was trained, that of the student alone at the method's cost. Right, the final metric against the cost of
    training, the student alone joined by a dashed line. A dot is a seed; markers and bars are means and standard
    deviations.

    Args:
        path: the PNG to write.
        runs: results of :func:`d2kd.experiments.collect`.

    Returns:
        whether there is a pair of a method and the student alone of one seed; else there is nothing to draw.
    """
    methods: dict[str, list[str]] = {}
    for config in dict.fromkeys(run["config"] for run in runs):
        of_config = [run for run in runs if run["config"] == config]
        gains = {method: paired_gains(of_config, method) for method in dict.fromkeys(r["method"] for r in of_config)}
        distilled = [x for x in distilled_methods(of_config) if gains[x]]
        if distilled:
            methods[config] = sorted(distilled, key=lambda x: sum(gains[x]) / len(gains[x]))
    if not methods:
        return False
    heights = [1.6 + max(2.2, 0.5 * len(x)) for x in methods.values()]
    figure = Figure(figsize=(11, sum(heights) + 0.3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    order = distilled_methods(runs)
    panels = figure.subplots(len(methods), 2, squeeze=False, height_ratios=heights)
    for (left, right), (config, ordered) in zip(panels, methods.items()):
        of_config = [run for run in runs if run["config"] == config]
        metric = f"{metric_name(of_config[0]['metric'])} on {of_config[0]['values_on']}"
        device = of_config[0]["device"]
        _plot_gains(left, of_config, ordered, order)
        left.set_xlabel(f"gain in {metric} over the student alone")
        left.set_title(config, loc="left", fontweight="bold")
        _plot_costs(right, of_config, ordered, order)
        right.set_xlabel(COST_LABELS[device])
        right.set_title(f"final {metric}", loc="left")
    handles = [
        Line2D([], [], color="black", marker=".", linestyle="", alpha=0.5, label="a seed"),
        Line2D([], [], color="black", marker="s", label="mean ± standard deviation"),
    ]
    if any(stretched_for(run["method"]) for run in runs):
        style = {**_point(stretched("any"), ()), "marker": "o"}
        handles.append(Line2D([], [], **style, label="student alone, at the method's cost"))
    shown = [method for method in order if any(method in ordered for ordered in methods.values())]
    handles += [Line2D([], [], **_point(method, order), label=method_label(method)) for method in (ALONE, *shown)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")
    return True


def _plot_gains(panel: Axes, runs: Sequence[Mapping[str, Any]], methods: Sequence[str], order: Sequence[str]) -> None:
    for row, method in enumerate(methods):
        for shift, name in ((0.13, method), (-0.17, stretched(method))):
            if gains := paired_gains(runs, name):
                style = _point(name, order)
                panel.plot(gains, [row + shift] * len(gains), ".", color=style["color"], alpha=0.5)
                mean, std = mean_std(gains) or (0.0, None)
                panel.errorbar(mean, row + shift, xerr=std, capsize=3, **style)
    panel.axvline(0, color="black", linewidth=1)
    panel.set_yticks(range(len(methods)), [method_label(method) for method in methods])
    for label, method in zip(panel.get_yticklabels(), methods):
        label.set_color(_point(method, order)["color"])
    panel.set_ylim(-0.6, len(methods) - 0.4)
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _plot_costs(panel: Axes, runs: Sequence[Mapping[str, Any]], methods: Sequence[str], order: Sequence[str]) -> None:
    means = {name: mean for name in dict.fromkeys(run["method"] for run in runs) if (mean := _mean_point(runs, name))}
    alone = {name: mean for name, mean in means.items() if name == ALONE or stretched_for(name)}
    if alone:
        xs, ys, stds = zip(*sorted(alone.values()))
        panel.errorbar(xs, ys, yerr=stds, linestyle="--", capsize=2, **line_style(ALONE, ()))
    for method in methods:
        if method in means:
            x, y, std = means[method]
            panel.errorbar(x, y, yerr=std, capsize=3, zorder=3, **_point(method, order))
    panel.margins(x=0.12, y=0.12)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _mean_point(runs: Sequence[Mapping[str, Any]], method: str) -> tuple[float, float, float] | None:
    """A method's mean cost, mean metric, and the metric's standard deviation; None where no cost is known."""
    points = [(run["cost_seconds"], final_value(run)) for run in runs if run["method"] == method]
    known = [(cost, value) for cost, value in points if cost is not None and value is not None]
    costs, values = mean_std([x for x, _ in known]), mean_std([y for _, y in known])
    return None if costs is None or values is None else (costs[0], values[0], values[1] or 0.0)


def _point(method: str, order: Sequence[str]) -> dict[str, Any]:
    """Errorbar's style of a method; of the student alone at a method's cost, hollow."""
    style = {**line_style(method, order), "linestyle": "", "markersize": 7}
    if stretched_for(method):
        return {**style, "markerfacecolor": "white", "linestyle": ""}
    return style
