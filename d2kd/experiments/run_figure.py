"""A figure of single runs: AP, learning rate, distillation terms and their gradient shares while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from d2kd.checkpoint import whole_file
from d2kd.experiments.curves import CurvePoint, curve
from d2kd.experiments.figures import PALETTE
from d2kd.experiments.metrics import metric_name

__all__ = ["plot_runs"]

Records = Mapping[int, Mapping[str, Any]]

_COST = "cost/wall_seconds"
_LINES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_TERM, _SHARE, _DETECTION = "loss_kd_", "_gradient_share", "detection losses, summed"


@dataclass(frozen=True)
class _Quantity:
    """What one panel shows: a logged scalar, its title, and whether it is a share of the detection losses' gradient."""

    key: str
    title: str
    is_share: bool = False


@rc_context({"text.parse_math": False})  # names may have dollar signs
def plot_runs(path: str | Path, runs: Mapping[str, Records]) -> None:
    """
    A row for the evaluations' metric and the learning rate, one for the detection losses, and one for each term: its
    value, and its share of the gradient. Each against iterations and, where it was logged, against the seconds of
    training. A run has one colour and kind of line in all panels. What no run has is left out.

    Args:
        path: the PNG to write.
        runs: label -> what :func:`d2kd.experiments.curves.read_metrics` returns.

    Raises:
        ValueError: there is nothing to draw.
    """
    runs = {label: _with_detection(records) for label, records in runs.items()}
    keys = list(dict.fromkeys(key for records in runs.values() for record in records.values() for key in record))
    metric = next((key for key in ("bbox/AP", *keys) if key in keys and key.endswith("/AP")), "")
    pairs = [(_Quantity(metric, f"{metric_name(metric)} of the evaluations"), _Quantity("lr", "learning rate"))]
    for term in sorted(key.removeprefix(_TERM) for key in keys if key.startswith(_TERM)):
        share = _Quantity(f"kd/{term}{_SHARE}", f"{term}: gradient, detection losses = 1", is_share=True)
        pairs.append((_Quantity(_TERM + term, f"{term}: value"), share))
    pairs.append((_Quantity(_DETECTION, _DETECTION), _Quantity("grad_norm", "norm of the whole gradient")))
    rows = [[quantity for quantity in pair if quantity.key in keys] for pair in pairs]
    rows = [row for row in rows if row]
    if not any(quantity.key != "grad_norm" for row in rows for quantity in row):
        raise ValueError("These runs have logged neither AP nor losses nor a learning rate: there is nothing to draw.")
    axes = ["training iterations"] + ["seconds (wall clock)"] * (_COST in keys)
    width = max(map(len, rows)) * len(axes)
    figure = Figure(figsize=(1 + 3.1 * width, 0.8 + 1.9 * len(rows)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), width, squeeze=False)
    last = {column: row for row, each in enumerate(rows) for column in range(len(each) * len(axes))}
    shares: list[Axes] = []
    for number, (row, quantities) in enumerate(zip(panels, rows)):
        for panel in row[len(quantities) * len(axes) :]:
            panel.remove()
        for index, quantity in enumerate(quantities):
            first = index * len(axes)
            here = list(row[first : first + len(axes)])
            _plot(here, quantity, runs)
            here[0].set_title(quantity.title, loc="left", fontsize=10)
            for column, (panel, label) in enumerate(zip(here, axes), first):
                if last[column] == number:
                    panel.set_xlabel(label)
            if quantity.is_share:
                shares += here
    if shares:  # one scale, so that terms can be compared
        limits = [limit for panel in shares for limit in panel.get_ylim()]
        for panel in shares:
            panel.set_ylim(min(limits), max(limits))
    handles = [Line2D([], [], color=color, linestyle=line, linewidth=2) for color, line in _styles(runs)]
    figure.legend(handles, list(runs), loc="outside upper center", ncols=min(4, len(runs)), handlelength=3.5)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _with_detection(records: Records) -> dict[int, dict[str, Any]]:
    """The records of a run, with the sum of its detection losses."""
    out = {done: dict(record) for done, record in records.items()}
    for record in out.values():
        if "total_loss" in record:
            record[_DETECTION] = record["total_loss"] - sum(v for k, v in record.items() if k.startswith(_TERM))
    return out


def _styles(runs: Mapping[str, Records]) -> list[tuple[str, tuple[float, tuple[float, ...]]]]:
    """Colour and kind of line of each run; where the colours begin again, the lines do not."""
    return [
        (PALETTE[index % len(PALETTE)], _LINES[(index + index // len(PALETTE)) % len(_LINES)])
        for index in range(len(runs))
    ]


def _plot(panels: Sequence[Axes], quantity: _Quantity, runs: Mapping[str, Records]) -> None:
    for records, (color, line) in zip(runs.values(), _styles(runs)):
        points = [point for point in curve(records, quantity.key, _COST) if not quantity.is_share or point.value > 0]
        marker = "o" if len(points) < 30 else None
        values = [point.value for point in points]
        for panel, xs in zip(panels, _abscissas(points)):
            panel.plot(xs, values, color=color, linestyle=line, marker=marker, markersize=3, linewidth=1.4)
    for panel in panels:
        if quantity.is_share:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.axhline(1, color="black", linewidth=0.8)
        else:
            panel.update_datalim([(0, 0)])  # for a margin above the largest value, however little it differs
            panel.autoscale_view()
            panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[1:]:
        panel.tick_params(labelleft=False)


def _abscissas(points: Sequence[CurvePoint]) -> tuple[list[float], list[float]]:
    """Iterations, and seconds as far as they are known."""
    seconds = [point.cost if point.cost is not None else float("nan") for point in points]
    return [point.iteration for point in points], seconds
