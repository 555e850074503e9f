"""The sheet of one image: what is labelled and detected, and where distillation acts on each pyramid level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from d2kd.checkpoint import whole_file
from d2kd.engine.sheet.boxes import RIGHT, WRONG, Box, draw_boxes, font, scaled_corners
from d2kd.engine.sheet.step import Cells, HeatMap, StepView

__all__ = ["draw_sheet", "heat", "save_sheets"]

_WIDTH = 1120
_MARGIN, _GAP = 18, 12
_LEVEL = 88  # the column that names the levels
_COLUMNS = 6
_WIDEST = 240  # a map
_TALLEST = 1.5  # a panel, in widths
_GREY = "#555555"
_LABEL = "#0b3c6f"  # a labelled object on a map
#: Without the ends of the map: small values stay apart from the image, large ones from the boxes.
_HEAT = (colormaps["YlOrRd"](np.linspace(0.1, 0.95, 256))[:, :3] * 255).round().astype(np.uint8)
#: What is less than this part of the largest value is not painted over the image.
_LEAST = 0.05


def draw_sheet(
    image: np.ndarray,
    detections: Mapping[str, Sequence[Box]],
    view: StepView,
    title: str,
    legend: str,
) -> Image.Image:
    """
    Above, the image with each set of boxes; below, a column for each map of the step, at most six side by side, and a
    row for each level. A map's largest value has the darkest colour.

    Args:
        image: (H, W, 3) uint8, RGB.
        detections: title -> boxes; the first are the labels, and are outlined in the maps, too.
        view: what a step does with that image.
        title: of the sheet.
        legend: which detections are drawn.
    """
    page = _Page()
    page.text(title, size=22, bold=True)
    page.skip(6)
    columns = _columns(len(detections), (_WIDTH - 2 * _MARGIN - _GAP * (len(detections) - 1)) // len(detections))
    if len(detections) < 4:
        columns = _columns(len(detections), (_WIDTH - 2 * _MARGIN - 3 * _GAP) // 4)
    page.titles([(name, "") for name in detections], columns)
    page.panels([draw_boxes(image, boxes, _size(image, columns[0][1])) for boxes in detections.values()], columns)
    known = any(box.right is not None for boxes in detections.values() for box in boxes)
    keys = [("right: the label's class, IoU of 0.5 or more", RIGHT), ("wrong", WRONG)] if known else []
    page.keys([*keys, (legend, None)])
    labels = next(iter(detections.values()))
    page.skip(20)
    page.text("Where distillation acts, on each level of the student's features", size=22, bold=True)
    for block in _blocks(view.maps):
        page.skip(6)
        room = _WIDTH - 2 * _MARGIN - _LEVEL - _GAP * (len(block) - 1)
        columns = _columns(len(block), min(_WIDEST, room // len(block)), left=_MARGIN + _LEVEL)
        page.titles([(x.title, x.subtitle) for x in block], columns)
        largest = [max(float(level.values.max()) for level in x.levels) for x in block]
        for index, level in enumerate(view.levels):
            size = _size(image, columns[0][1])
            panels = [_panel(image, x.levels[index], most, size, labels) for x, most in zip(block, largest)]
            for panel, x in zip(panels, block):
                _note(panel, x.notes[index])
            page.panels(panels, columns, label=level)
    page.color_bar(labelled=bool(labels))
    for remark in view.remarks:
        page.text(remark, size=17, color=_GREY)
    return page.image()


def heat(cells: Cells, largest: float, shape: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """
    A level's cells as pixels, each around its centre.

    Args:
        largest: the value of the darkest colour.
        shape: (height, width) of the image.
        size: (width, height) in which it is drawn.

    Returns:
        (height, width, 3) uint8 colours, and (height, width) booleans: where they are to be seen.
    """
    indices = []
    for axis, (side, drawn, first) in enumerate(zip(shape, reversed(size), reversed(cells.first))):
        place = (np.arange(drawn) + 0.5) * side / drawn
        index = np.floor((place - first) / cells.stride + 0.5).astype(int)
        indices.append(index.clip(0, cells.values.shape[axis] - 1))
    values = cells.values.numpy()[np.ix_(*indices)] / (largest or 1.0)
    return _HEAT[(values * 255).round().astype(int).clip(0, 255)], values >= _LEAST


def save_sheets(path: Path, sheets: Sequence[Image.Image]) -> None:
    """One PNG of sheets, one below the other."""
    page = Image.new("RGB", (max(x.width for x in sheets), sum(x.height for x in sheets)), "white")
    y = 0
    for sheet in sheets:
        page.paste(sheet, (0, y))
        y += sheet.height
    with whole_file(path) as partial:
        page.save(partial, format="PNG")


def _blocks(maps: Sequence[HeatMap]) -> list[Sequence[HeatMap]]:
    """Maps that stand side by side, in rows of about one length."""
    each = math.ceil(len(maps) / math.ceil(len(maps) / _COLUMNS))
    return [maps[start : start + each] for start in range(0, len(maps), each)]


def _columns(count: int, width: int, left: int = _MARGIN) -> list[tuple[int, int]]:
    """Left side and width of each."""
    return [(left + index * (width + _GAP), width) for index in range(count)]


def _size(image: np.ndarray, width: int) -> tuple[int, int]:
    """(width, height) of a panel of an image that may be high."""
    scale = min(width / image.shape[1], _TALLEST * width / image.shape[0])
    return max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))


def _panel(
    image: np.ndarray, cells: Cells, largest: float, size: tuple[int, int], labels: Sequence[Box]
) -> Image.Image:
    colors, painted = heat(cells, largest, image.shape[:2], size)
    ground = np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L").resize(size), dtype=np.float32)
    ground = (175 + ground * 0.3).clip(0, 255).astype(np.uint8)  # faint, so that it is no heat
    panel = Image.fromarray(np.where(painted[..., None], colors, ground[..., None]))
    draw = ImageDraw.Draw(panel)
    scale = size[0] / image.shape[1], size[1] / image.shape[0]
    for box in labels:
        draw.rectangle(scaled_corners(box.xyxy, scale), outline=_LABEL, width=3)
    return panel


def _note(panel: Image.Image, text: str) -> None:
    draw = ImageDraw.Draw(panel)
    x0, y0, x1, y1 = draw.textbbox((panel.width - 5, panel.height - 4), text, font=font(16), anchor="rd")
    draw.rectangle((x0 - 4, y0 - 3, panel.width, panel.height), fill="white")
    draw.text((panel.width - 5, panel.height - 4), text, fill="black", font=font(16), anchor="rd")


class _Page:
    """A page that grows downwards."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (_WIDTH, 400), "white")
        self._y = _MARGIN

    def image(self) -> Image.Image:
        return self._image.crop((0, 0, _WIDTH, self._y + _MARGIN))

    def skip(self, height: int) -> None:
        self._y += height

    def text(self, text: str, *, size: int, bold: bool = False, color: str = "black") -> None:
        for line in _wrapped(text, size, bold, _WIDTH - 2 * _MARGIN):
            self._draw(size + 6).text((_MARGIN, self._y), line, fill=color, font=font(size, bold))
            self._y += size + 6

    def titles(self, titles: Sequence[tuple[str, str]], columns: Sequence[tuple[int, int]]) -> None:
        """Of columns, each in its width; the panels below begin at one height."""
        lines = [
            [(x, 20, True) for x in _wrapped(title, 20, True, width)]
            + [(x, 16, False) for x in _wrapped(subtitle, 16, False, width)]
            for (title, subtitle), (_, width) in zip(titles, columns)
        ]
        heights = [sum(size + 5 for _, size, _ in x) for x in lines]
        draw = self._draw(max(heights) + 4)
        for each, (left, _), height in zip(lines, columns, heights):
            y = self._y + max(heights) - height
            for line, size, bold in each:
                draw.text((left, y), line, fill="black" if bold else _GREY, font=font(size, bold))
                y += size + 5
        self._y += max(heights) + 4

    def panels(self, panels: Sequence[Image.Image], columns: Sequence[tuple[int, int]], label: str = "") -> None:
        lines = label.splitlines()
        height = max(23 * len(lines), *(x.height for x in panels))  # panels of a flat image are lower than a label
        draw = self._draw(height + _GAP)
        for panel, (left, _) in zip(panels, columns):
            self._image.paste(panel, (left, self._y))
        for number, line in enumerate(lines):
            draw.text((_MARGIN, self._y + 23 * number), line, fill="black", font=font(17, bold=number == 0))
        self._y += height + _GAP

    def keys(self, keys: Sequence[tuple[str, str | None]]) -> None:
        """What colours say; without one, a text."""
        draw, x = self._draw(26), _MARGIN
        for text, color in keys:
            width = math.ceil(font(17).getlength(text)) + (28 if color else 0)
            if x + width > _WIDTH - _MARGIN:
                self._y += 26
                draw, x = self._draw(26), _MARGIN
            if color:
                draw.rectangle((x, self._y + 3, x + 18, self._y + 17), fill=color, outline="black")
            draw.text((x + (28 if color else 0), self._y), text, fill="black", font=font(17))
            x += width + 30
        self._y += 26

    def color_bar(self, *, labelled: bool) -> None:
        width, height, left = 200, 18, _MARGIN + _LEVEL
        draw = self._draw(30)
        draw.text((left - 10, self._y - 1), "0", fill="black", font=font(17), anchor="ra")
        for x in range(width):
            draw.line(
                (left + x, self._y, left + x, self._y + height), fill=tuple(_HEAT[x * 255 // (width - 1)].tolist())
            )
        left += width + 10
        text = f"the largest of the column; below {_LEAST:.0%} of it: the image"
        draw.text((left, self._y - 1), text, fill="black", font=font(17))
        if labelled:
            left += int(font(17).getlength(text)) + 50
            draw.rectangle((left, self._y, left + 22, self._y + height), outline=_LABEL, width=3)
            draw.text((left + 32, self._y - 1), "labelled object", fill="black", font=font(17))
        self._y += 30

    def _draw(self, height: int) -> ImageDraw.ImageDraw:
        """A page that has room for as much below."""
        if self._y + height > self._image.height:
            taller = Image.new("RGB", (_WIDTH, 2 * self._image.height + height), "white")
            taller.paste(self._image)
            self._image = taller
        return ImageDraw.Draw(self._image)


def _wrapped(text: str, size: int, bold: bool, width: int) -> list[str]:
    """Lines of whole words, as far as words are narrower than that."""
    lines: list[str] = []
    for word in text.split():
        if lines and font(size, bold).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
