"""The picture of d2kd check: what is labelled, what the teacher detects, where the terms look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from d2kd.checkpoint import whole_file
from d2kd.engine import teacher_predictor
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors.interface import strides_of
from d2kd.structures import DenseOutput

__all__ = ["draw_picture"]

_LABEL, _TEACHER = "#56B4E9", "#E69F00"  # Okabe and Ito's
_LEAST_SCORE = 0.3
_MAX_REGIONS = 3


def draw_picture(
    path: Path, model: DistilledDetector, items: Sequence[Mapping[str, Any]], names: Sequence[str] | None
) -> None:
    """
    A row for each image: its labels, the teacher's detections, and for each region of the terms the largest weight of
    any of its levels and anchors.

    Args:
        path: the PNG to write.
        model: in training mode, with its teacher.
        items: labelled images, as of a batch.
        names: of the student's classes.
    """
    if not items:
        return
    regions = _regions(model, items)
    found = _detections(model, items)
    columns = 2 + len(regions)
    heights = [3.2 * height / width for height, width in (item["image"].shape[-2:] for item in items)]
    figure = Figure(figsize=(3.2 * columns, sum(heights) + 0.3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(items), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, (item, detected) in enumerate(zip(items, found, strict=True)):
        instances = item["instances"]
        _draw(panels[row, 0], item, model.input_format)
        _boxes(panels[row, 0], instances.gt_boxes.tensor, instances.gt_classes, names, _LABEL)
        _draw(panels[row, 1], item, model.input_format)
        kept = detected[detected.scores >= _LEAST_SCORE]
        _boxes(panels[row, 1], kept.pred_boxes.tensor, kept.pred_classes, names, _TEACHER, kept.scores)
        for column, weights in enumerate(regions.values()):
            panel = panels[row, 2 + column]
            _draw(panel, item, model.input_format)
            height, width = item["image"].shape[-2:]
            panel.imshow(weights[row, :height, :width].numpy(), cmap="inferno", alpha=0.65, vmin=0)
            _boxes(panel, instances.gt_boxes.tensor, instances.gt_classes, None, _LABEL)
    for panel, title in zip(panels[0], ["labels", f"teacher (score >= {_LEAST_SCORE})", *regions]):
        panel.set_title(title, fontsize=10)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


@torch.no_grad()
def _detections(model: DistilledDetector, items: Sequence[Mapping[str, Any]]) -> list[Any]:
    plain = [{"image": x["image"], "height": x["image"].shape[-2], "width": x["image"].shape[-1]} for x in items]
    return [output["instances"].to("cpu") for output in teacher_predictor(model)(plain)]


def _regions(model: DistilledDetector, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Region's name -> (N, H, W), its weights on the canvas, of those that differ from place to place."""
    given: dict[str, tuple[list[Tensor], Sequence[Tensor]]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[DenseOutput, DenseOutput, Sequence[Tensor]]], None]:
        return lambda loss, args: given.update({name: (args[0].anchors, args[2])})

    handles = [loss.register_forward_pre_hook(watch(name)) for name, loss in model.losses.items()]
    try:
        with torch.no_grad(), EventStorage(10**6):
            model([dict(item) for item in items])
    finally:
        for handle in handles:
            handle.remove()
    height, width = (max(item["image"].shape[side] for item in items) for side in (-2, -1))
    of_student = strides_of(model.student)
    strides = [of_student[level] for level in model.overlap.student_levels]
    drawn: dict[str, Tensor] = {}
    for name, (anchors, levels) in given.items():
        # Of several regions (R, N, A, H, W) and anchors the largest.
        cells = [(x if x.dim() == 4 else x.amax(0)).amax(1).float().cpu() for x in levels]
        largest = torch.stack([_spread(*level, (height, width)) for level in zip(cells, anchors, strides)]).amax(0)
        same = next((other for other, x in drawn.items() if torch.equal(x, largest)), None)
        if largest.min() < largest.max() and same is None:
            drawn[name] = largest
        elif same is not None:
            drawn = {f"{key}, {name}" if key == same else key: x for key, x in drawn.items()}
    return {f"where {name} looks": x for name, x in list(drawn.items())[:_MAX_REGIONS]}


def _spread(cells: Tensor, anchors: Tensor, stride: int, canvas: tuple[int, int]) -> Tensor:
    """(N, H, W) weights of a level's cells on the pixels around their anchors' centres, (N, height, width)."""
    center = (anchors[0, 0, 0, :2] + anchors[0, 0, 0, 2:]) / 2
    for axis, (side, first) in enumerate(zip(canvas, center.flip(0).tolist())):
        index = ((torch.arange(side) + 0.5 - first) / stride + 0.5).floor().long()
        cells = cells.index_select(axis + 1, index.clamp(0, cells.shape[axis + 1] - 1))
    return cells


def _draw(panel: Axes, item: Mapping[str, Any], input_format: str) -> None:
    image = item["image"].cpu()
    panel.imshow((image if input_format == "RGB" else image.flip(0)).permute(1, 2, 0).numpy())
    panel.set(xticks=[], yticks=[])


def _boxes(
    panel: Axes,
    boxes: Tensor,
    classes: Tensor,
    names: Sequence[str] | None,
    color: str,
    scores: Tensor | None = None,
) -> None:
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        panel.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=1.6))
        if names is None and scores is None:
            continue
        number = int(classes[index])
        text = (names[number] if names else str(number)) + ("" if scores is None else f" {scores[index]:.2f}")
        panel.text(x0, y0, text, fontsize=8, va="bottom", bbox={"facecolor": color, "pad": 1, "edgecolor": "none"})
