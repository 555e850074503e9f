"""
Figure of LD's regions: where, on each pyramid level, localization distillation reads the teacher.

    python -m d2kd.experiments.region_figure --output docs/pictures/ld_regions.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from torch import Tensor

from d2kd.checkpoint import whole_file
from d2kd.regions import inside_box_region, valuable_localization_region
from d2kd.regions.atss import assign

__all__ = ["draw_regions", "ld_regions", "square_anchors"]

# Okabe and Ito's colours, without those that the heat map takes.
_COLORS = ("#0072B2", "#CC79A7", "#009E73", "#56B4E9")
# Without the ends of the map: small weights stay apart from the blank ground, large ones from the dots.
_HEAT = ListedColormap(colormaps["YlOrRd"](np.linspace(0.1, 0.85, 256)))
_GROUND = "#eef0f2"

# The scene of the documentation: an object for each level.
_CANVAS = (384, 512)
_BOXES = ((52.0, 40.0, 108.0, 98.0), (36.0, 205.0, 170.0, 322.0), (212.0, 66.0, 476.0, 338.0))


def square_anchors(canvas: tuple[int, int], stride: int, side: int) -> tuple[Tensor, tuple[int, int]]:
    """
    One level's anchors as GFL and ATSS have them: squares around (column * stride, row * stride).

    Args:
        canvas: (height, width) in pixels.
        stride: of the level.
        side: of an anchor, in pixels.

    Returns:
        (H * W, 4) xyxy, and (H, W).
    """
    size = (-(-canvas[0] // stride), -(-canvas[1] // stride))
    y, x = torch.meshgrid(torch.arange(size[0]) * stride, torch.arange(size[1]) * stride, indexing="ij")
    centers = torch.stack([x, y], dim=-1).flatten(0, 1).float()
    return torch.cat([centers - side / 2, centers + side / 2], dim=1), size


def ld_regions(level_anchors: Sequence[Tensor], gt_boxes: Tensor) -> dict[str, list[Tensor]]:
    """
    Label -> per level, (R_l,) weights of one image: the positives and the regions that LD distils beside them.

    Args:
        level_anchors: per level, (R_l, 4) xyxy.
        gt_boxes: (G, 4) xyxy objects.
    """
    positives = assign(level_anchors, gt_boxes) >= 0
    code = valuable_localization_region(level_anchors, [gt_boxes])[0]
    paper = valuable_localization_region(
        level_anchors, [gt_boxes], metric="diou", weighting="mask", excluded=positives[None]
    )[0]
    regions = {
        "main region:\npositives": positives.float(),
        "valuable localisation\nregion, as in the code": code,
        "valuable localisation\nregion, as in the paper": paper,
        "inside a box,\nnot positive": inside_box_region(torch.cat(list(level_anchors)), gt_boxes, excluded=positives),
    }
    sizes = [len(x) for x in level_anchors]
    return {label: list(weights.split(sizes)) for label, weights in regions.items()}


def draw_regions(
    path: str | Path,
    gt_boxes: Tensor,
    canvas: tuple[int, int],
    *,
    strides: Sequence[int] = (8, 16, 32),
    anchor_scale: int = 8,
    image: np.ndarray | None = None,
) -> None:
    """
    LD's regions of one image as heat maps: a row for each region, a column for each pyramid level, the objects' boxes
    in each. A cell is drawn around its anchor's centre.

    Args:
        path: the PNG to write.
        gt_boxes: (G, 4) xyxy objects, in pixels of the canvas.
        canvas: (height, width) in pixels.
        strides: of the levels, from P3 on.
        anchor_scale: an anchor's side in strides.
        image: (height, width, 3) uint8, RGB, drawn faintly below; None for a blank canvas.
    """
    anchors, sizes = zip(*(square_anchors(canvas, stride, anchor_scale * stride) for stride in strides))
    regions = ld_regions(anchors, gt_boxes)
    positives = next(iter(regions.values()))
    height = 1.5 + len(regions) * 3.6 * canvas[0] / canvas[1]
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06)
    figure = Figure(figsize=(1.1 + 3.6 * len(strides), height), dpi=110, layout=layout)
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(regions), len(strides), squeeze=False, sharex=True, sharey=True)
    for row, (label, levels) in zip(panels, regions.items(), strict=True):
        row[0].set_ylabel(label, fontsize=12, labelpad=8)
        for panel, weights, size, stride, positive in zip(row, levels, sizes, strides, positives, strict=True):
            panel.set_facecolor(_GROUND)
            if image is not None:
                panel.imshow(255 - (255 - image) // 3, extent=(0, canvas[1], canvas[0], 0))
            drawn = _draw_level(panel, weights.unflatten(0, size).numpy(), stride)
            if levels is not positives:
                _dot(panel, positive.unflatten(0, size).numpy(), stride)
            _draw_boxes(panel, gt_boxes.tolist())
            panel.set(xlim=(-4, canvas[1] + 4), ylim=(canvas[0] + 4, -4), xticks=[], yticks=[])
            _note(panel, f"{int((weights > 0).sum())} of {len(weights)}")
    for level, (panel, stride) in enumerate(zip(panels[0], strides, strict=True)):
        title = f"P{level + 3}: stride {stride}, anchors of {anchor_scale * stride} px"
        panel.set_title(title, fontsize=12, pad=7)
    bar = figure.colorbar(drawn, ax=panels, location="bottom", fraction=0.03, pad=0.015, aspect=60)
    bar.set_label(
        "weight of a location (grey: 0)     boxes: objects     dots: positives     corner: locations in the region",
        fontsize=11.5,
    )
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _draw_level(panel: Axes, weights: np.ndarray, stride: int) -> AxesImage:
    rows, columns = weights.shape
    low, right, bottom = -stride / 2, (columns - 0.5) * stride, (rows - 0.5) * stride
    return panel.imshow(
        np.ma.masked_equal(weights, 0),
        cmap=_HEAT,
        vmin=0,
        vmax=1,
        extent=(low, right, bottom, low),
        interpolation="nearest",
    )


def _dot(panel: Axes, positive: np.ndarray, stride: int) -> None:
    y, x = np.nonzero(positive)
    panel.scatter(x * stride, y * stride, s=5, color="black", linewidths=0, zorder=4)


def _draw_boxes(panel: Axes, boxes: Sequence[Sequence[float]]) -> None:
    outline: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=2.8, foreground="white")]
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        color = _COLORS[number % len(_COLORS)]
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=1.8, zorder=3)
        box.set_path_effects(outline)
        panel.add_patch(box)


def _note(panel: Axes, text: str) -> None:
    panel.text(
        0.985,
        0.975,
        text,
        transform=panel.transAxes,
        ha="right",
        va="top",
        fontsize=11,
        bbox=dict(facecolor="white", edgecolor="none", alpha=0.85, pad=2),
        zorder=5,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures/ld_regions.png"), help="the PNG to write")
    draw_regions(parser.parse_args(argv).output, torch.tensor(_BOXES), _CANVAS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
