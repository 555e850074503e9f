"""Boxes drawn on images: ground truth, and detections that are right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from d2kd.structures import iou

__all__ = ["RIGHT", "WRONG", "Box", "draw_boxes", "font", "mark", "place_label"]

#: Okabe and Ito's colours, told apart by colour-blind readers too: of detections that are right, and wrong.
RIGHT, WRONG = "#56B4E9", "#E69F00"

_TEXT = 17


@dataclass(frozen=True)
class Box:
    """
    Args:
        xyxy: corners in pixels of the image.
        name: of the class.
        score: of the detection; None for ground truth.
        right: whether it is one of the ground truth's objects; None where that is not asked.
    """

    xyxy: tuple[float, float, float, float]
    name: str
    score: float | None = None
    right: bool | None = None


def mark(boxes: Sequence[Box], truth: Sequence[Box], threshold: float = 0.5) -> list[Box]:
    """
    Say of each detection whether it is right: of the class of a ground-truth box that it overlaps by at least
    ``threshold`` (IoU), and the first such, by score.
    """
    boxes = sorted(boxes, key=lambda box: -(box.score or 0.0))
    found, there = (torch.tensor([b.xyxy for b in x], dtype=torch.float64).reshape(-1, 4) for x in (boxes, truth))
    overlaps = iou(found[:, None], there).tolist()
    free, out = list(range(len(truth))), []
    for box, row in zip(boxes, overlaps, strict=True):
        hits = [i for i in free if truth[i].name == box.name and row[i] >= threshold]
        if hits:
            free.remove(max(hits, key=row.__getitem__))
        out.append(replace(box, right=bool(hits)))
    return out


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own, which is on every machine."""
    name = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(name), size)


def draw_boxes(image: np.ndarray, boxes: Sequence[Box], size: tuple[int, int], max_texts: int = 12) -> Image.Image:
    """
    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: in its pixels, the most important first.
        size: (width, height) to draw it in.
        max_texts: how many boxes get a text, so that the image stays visible.
    """
    out = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(out)
    scale = size[0] / image.shape[1], size[1] / image.shape[0]
    scaled = [scaled_corners(box.xyxy, scale) for box in boxes]
    colors = [{None: "white", True: RIGHT, False: WRONG}[box.right] for box in boxes]
    for corners, color in zip(scaled, colors, strict=True):
        outline(draw, corners, color)
    taken: list[tuple[float, float, float, float]] = []
    for box, corners, color in list(zip(boxes, scaled, colors, strict=True))[:max_texts]:
        text = box.name if box.score is None else f"{box.name}  {box.score:.2f}"
        _, _, width, height = draw.textbbox((0, 0), text, font=font(_TEXT))
        label = place_label((width, height), corners, size, taken)
        taken.append(label)
        draw.rectangle(label, fill=color, outline="black")
        draw.text((label[0] + 4, label[1] + 1), text, fill="black", font=font(_TEXT))
    return out


def scaled_corners(
    xyxy: tuple[float, float, float, float], scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = xyxy
    return x0 * scale[0], y0 * scale[1], max(x0, x1) * scale[0], max(y0, y1) * scale[1]


def outline(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], color: str) -> None:
    """A line of three pixels between two black ones."""
    draw.rectangle(corners, outline="black", width=5)
    x0, y0, x1, y1 = corners
    if x1 - x0 > 2 and y1 - y0 > 2:
        draw.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=color, width=3)


def place_label(
    text: tuple[float, float],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """A label's rectangle at its box: inside the (width, height) ``size`` and, if any place is free, on no other."""
    width, height = text[0] + 8, text[1] + 5
    x0, y0, x1, y1 = box
    places = [
        (x, y) for y in (y0 - height, y1, y0, y1 - height, y0 - 2 * height, y1 + height) for x in (x0, x1 - width)
    ]
    rectangles = []
    for x, y in places:
        x, y = max(min(x, size[0] - width - 1), 0), max(min(y, size[1] - height - 1), 0)
        rectangles.append((x, y, x + width, y + height))
    for r in rectangles:
        if not any(r[0] < t[2] and t[0] < r[2] and r[1] < t[3] and t[1] < r[3] for t in taken):
            return r
    return rectangles[0]
