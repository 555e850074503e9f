"""A figure of single runs: AP, distillation terms, their gradient shares and the learning rate while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from d2kd.checkpoint import whole_file
from d2kd.experiments.curves import CurvePoint, curve
from d2kd.experiments.figures import PALETTE
from d2kd.experiments.metrics import metric_name

__all__ = ["plot_runs"]

Records = Mapping[int, Mapping[str, Any]]

_COST = "cost/wall_seconds"
_GREY = "#8a8a8a"
_LINES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_TERM, _SHARE, _DETECTION = "loss_kd_", "_gradient_share", "detection losses, summed"


def plot_runs(path: str | Path, runs: Mapping[str, Records]) -> None:
    """
    A row of panels for each of: the evaluations' metric, the values of the terms and of the detection losses, the
    terms' gradient shares, and the learning rate; against iterations and, where it was logged, against the seconds of
    training. A term has one colour in all panels, a run one kind of line. A row that no run has anything for is left
    out.

    Args:
        path: the PNG to write.
        runs: label -> what :func:`d2kd.experiments.curves.read_metrics` returns.

    Raises:
        ValueError: there is nothing to draw.
    """
    runs = {label: _with_detection(records) for label, records in runs.items()}
    keys = list(dict.fromkeys(key for records in runs.values() for record in records.values() for key in record))
    metric = next((key for key in ("bbox/AP", *keys) if key in keys and key.endswith("/AP")), None)
    terms = sorted(key.removeprefix(_TERM) for key in keys if key.startswith(_TERM))
    rows: list[tuple[str, dict[str, str], bool]] = [  # title, metric -> label of its line, logarithmic
        (f"{metric_name(metric or '')} on dataloader.test", {metric: ""} if metric else {}, False),
        ("value of the losses", {**{_TERM + x: x for x in terms}, _DETECTION: _DETECTION}, False),
        ("gradient at the student's FPN,\ndetection losses = 1", {f"kd/{x}{_SHARE}": x for x in terms}, True),
        ("learning rate", {"lr": ""}, False),
    ]
    rows = [(title, {k: v for k, v in lines.items() if k in keys}, log) for title, lines, log in rows]
    rows = [row for row in rows if row[1]]
    if not rows:
        raise ValueError("These runs have logged neither AP nor losses nor a learning rate: there is nothing to draw.")
    colors = {**dict(zip(terms, cycle(PALETTE))), _DETECTION: _GREY, "": "black"}
    columns = ["training iterations"] + ["seconds of training (wall clock)"] * (_COST in keys)
    figure = Figure(figsize=(1 + 5 * len(columns), 0.6 + 2.5 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row", sharex="col")
    for row, (title, lines, log) in zip(panels, rows):
        _plot_row(row, lines, runs, colors, log)
        row[0].set_ylabel(title)
    for panel, label in zip(panels[-1], columns):
        panel.set_xlabel(label)
    handles = {
        label: Line2D([], [], color=colors[label], linewidth=2)
        for label in (*terms, _DETECTION)
        if label in _drawn(rows)
    }
    if len(runs) > 1:
        handles |= {
            f"run {label}": Line2D([], [], color="black", linestyle=style) for label, style in zip(runs, cycle(_LINES))
        }
    else:
        figure.suptitle(next(iter(runs)))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, handlelength=3.5)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _with_detection(records: Records) -> dict[int, dict[str, Any]]:
    """The records of a run, with the sum of its detection losses."""
    out = {done: dict(record) for done, record in records.items()}
    for record in out.values():
        if "total_loss" in record:
            record[_DETECTION] = record["total_loss"] - sum(v for k, v in record.items() if k.startswith(_TERM))
    return out


def _drawn(rows: Sequence[tuple[str, Mapping[str, str], bool]]) -> set[str]:
    return {label for _, lines, _ in rows for label in lines.values()}


def _plot_row(
    panels: Sequence[Axes], lines: Mapping[str, str], runs: Mapping[str, Records], colors: Mapping[str, str], log: bool
) -> None:
    for records, style in zip(runs.values(), cycle(_LINES)):
        for key, label in lines.items():
            points = [point for point in curve(records, key, _COST) if not log or point.value > 0]
            for panel, xs in zip(panels, _abscissas(points)):
                marker = "o" if len(points) < 30 else None
                values = [point.value for point in points]
                panel.plot(xs, values, color=colors[label], linestyle=style, marker=marker, markersize=3, linewidth=1.5)
    for panel in panels:
        if log:
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.axhline(1, color="black", linewidth=0.8)
            panel.annotate(
                "as strong as the detection losses",
                (0.99, 1),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        else:
            panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)


def _abscissas(points: Sequence[CurvePoint]) -> tuple[list[float], list[float]]:
    """Iterations, and seconds as far as they are known."""
    seconds = [point.cost if point.cost is not None else float("nan") for point in points]
    return [point.iteration for point in points], seconds
