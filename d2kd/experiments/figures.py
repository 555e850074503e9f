"""Figures of an experiment: its metric over iterations and cost, and detections on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw

from d2kd.checkpoint import whole_file
from d2kd.config import ALONE
from d2kd.engine.sheet import RIGHT, WRONG, Box, draw_boxes, font
from d2kd.experiments.curves import CurvePoint, align
from d2kd.experiments.metrics import metric_name
from d2kd.experiments.plan import TEACHER, method_label, stretched_for
from d2kd.experiments.statistics import final_value

__all__ = ["COST_LABELS", "PALETTE", "distilled_methods", "draw_sheet", "line_style", "plot_curves"]

# Okabe and Ito's colours, told apart by colour-blind readers too; markers differ as well.
_ORANGE, _SKY, _GREY = WRONG, RIGHT, "#6b6b6b"
_OTHERS = [("#0072B2", "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#D55E00", "v"), (_SKY, "P"), ("#000000", "X")]
_OTHERS += [("#8C564B", "*"), ("#5B3A8C", "<")]  # beside theirs, since their yellow does not show on white
#: A method has one style in all figures.
_OWN = dict(zip(("crosskd", "crosskd_pkd", "tid", "bckd", "ld", "ftpd", "pkd", "cwd"), _OTHERS))

#: What the axis of a cost says, by the kind of device.
COST_LABELS = {"cpu": "CPU seconds of the training loop", "cuda": "seconds of the training loop, on a GPU"}

#: The colours of curves, in their order.
PALETTE = tuple(color for color, _ in _OTHERS)


def line_style(method: str, distilled: Sequence[str]) -> dict[str, Any]:
    """
    Matplotlib's colour, marker and line style of a method's curve.

    Args:
        method: of the curve.
        distilled: all methods of the figure that distil, in their order.
    """
    if method == ALONE:
        return {"color": _GREY, "marker": "o"}
    if source := stretched_for(method):
        marker = line_style(source, distilled)["marker"] if source in distilled else "x"
        return {"color": _ORANGE, "marker": marker, "linestyle": "--"}
    others = [name for name in distilled if name not in _OWN]
    free = [style for name, style in _OWN.items() if name not in distilled] or _OTHERS
    color, marker = _OWN[method] if method in _OWN else free[others.index(method) % len(free)]
    return {"color": color, "marker": marker}


@rc_context({"text.parse_math": False})  # names may have dollar signs
def plot_curves(path: str | Path, runs: Sequence[Mapping[str, Any]], labels: Mapping[str, str] | None = None) -> None:
    """
    The metric of the evaluations in training, against iterations and against their cost: the mean over seeds, with a
    band of one standard deviation. A row of panels for each config; a teacher is a dotted line.

    Args:
        path: the PNG to write.
        runs: results with config, method, metric, metrics, device and curve; see
            :func:`d2kd.experiments.results.train_result`.
        labels: method -> label, where it is another than the tables'.
    """
    configs = list(dict.fromkeys(run["config"] for run in runs))
    figure = Figure(figsize=(11, 4.2 * len(configs)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(configs), 2, squeeze=False, sharey="row")
    distilled = distilled_methods(runs)
    for (left, right), config in zip(panels, configs, strict=True):
        of_config = [run for run in runs if run["config"] == config]
        _plot_config((left, right), of_config, distilled, labels or {})
        left.set_ylabel(f"{config}: {metric_name(of_config[0]['metric'])} on {of_config[0]['metrics_on']}")
        left.set_xlabel("training iterations")
        right.set_xlabel(COST_LABELS[of_config[0]["device"]])
    handles = {
        label: handle
        for panel in panels[:, 0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    seeds = {(run["config"], run["method"], run["seed"]) for run in runs}
    if len({seed[:2] for seed in seeds}) < len(seeds):
        handles["band: standard deviation over seeds"] = Patch(color="black", alpha=0.15, linewidth=0)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles)))
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def distilled_methods(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods that distil, in their order: by it each has one style in all panels."""
    methods = dict.fromkeys(run["method"] for run in runs)
    return [method for method in methods if method not in (ALONE, TEACHER) and not stretched_for(method)]


def _plot_config(
    panels: tuple[Axes, Axes], runs: Sequence[Mapping[str, Any]], distilled: Sequence[str], labels: Mapping[str, str]
) -> None:
    groups: dict[str, list[list[CurvePoint]]] = {}
    for run in runs:
        if run["method"] == TEACHER:
            if (value := final_value(run, "metrics")) is not None:
                for panel in panels:
                    panel.axhline(value, color="black", linestyle=":", linewidth=1.2, label=TEACHER)
        else:
            groups.setdefault(run["method"], []).append([CurvePoint(*point) for point in run["curve"]])
    for method, curves in groups.items():
        points = align(curves)  # (runs, points, 3)
        mean = points.mean(axis=0)
        for panel, column in zip(panels, (0, 1), strict=True):
            style = {**line_style(method, distilled), "markersize": 4.5, "linewidth": 1.6}
            panel.plot(mean[:, column], mean[:, 2], label=labels.get(method, method_label(method)), **style)
            if len(curves) > 1:
                std = points[:, :, 2].std(axis=0, ddof=1)
                low, high = mean[:, 2] - std, mean[:, 2] + std
                panel.fill_between(mean[:, column], low, high, color=style["color"], alpha=0.15, linewidth=0)
    for panel in panels:
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)


def draw_sheet(
    path: str | Path,
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[Sequence[Box]]],
    caption: str,
    panel: int = 300,
) -> None:
    """
    A contact sheet: a row for each image, a column for each set of boxes.

    Args:
        path: the PNG to write.
        images: (H, W, 3) uint8, RGB.
        columns: title -> boxes of each image.
        caption: a line below.
        panel: height and width of a panel in pixels.
    """
    gap, head, foot = 8, 40, 34
    size = (gap + len(columns) * (panel + gap), head + len(images) * (panel + gap) + foot)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, rows) in enumerate(columns.items()):
        x = gap + column * (panel + gap)
        draw.text((x + panel / 2, head / 2), title, fill="black", font=font(20), anchor="mm")
        for row, (image, boxes) in enumerate(zip(images, rows, strict=True)):
            sheet.paste(draw_boxes(image, boxes, (panel, panel)), (x, head + row * (panel + gap)))
    draw.text((gap, size[1] - foot / 2), caption, fill="black", font=font(16), anchor="lm")
    with whole_file(path) as partial:
        sheet.save(partial, format="PNG")
