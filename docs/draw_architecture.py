"""
Draw d2kd's packages and the imports between them: layers from the contract in pyproject.toml, arrows from the code.

    python docs/draw_architecture.py

An arrow that follows from others is left out: A -> C where A -> B and B -> C are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import grimp
from importlinter import api
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

OUTPUT = Path(__file__).parent / "pictures/architecture.png"
HEIGHT, GAP = 0.62, 0.42  # of a box, between two layers
#: package -> centre and width of its box, and a few words on what is in it
PLACES = {
    "cli": (5.0, 6.6, "the commands"),
    "experiments": (1.6, 2.8, "methods x seeds"),
    "conversion": (5.0, 2.5, "OpenMMLab's checkpoints"),
    "export": (8.2, 2.5, "the student alone"),
    "engine": (1.05, 1.7, "trainer, evaluation"),
    "config": (4.6, 3.2, "distill(), yacs keys"),
    "modeling.distillation": (5.0, 2.5, "one training step"),
    "modeling.adapters": (5.0, 2.5, "how a head is read"),
    "modeling.detectors": (5.0, 2.5, "GFL, ATSS, distributions"),
    "modeling.backbones": (5.0, 2.5, "timm"),
    "methods": (3.2, 1.9, "presets"),
    "checkpoint": (8.2, 2.1, "files, strict loading"),
    "data": (1.05, 1.7, "loaders, digits"),
    "losses": (5.4, 6.2, "kernels: how to distil"),
    "regions": (5.0, 7.0, "weights: where to distil"),
    "structures": (5.0, 7.0, "dense outputs, assignments"),
}
TORCH_ONLY = ("structures", "regions", "losses")

Point = tuple[float, float]
Line = tuple[Point, Point]
Box = tuple[float, float, float, float]  # left, bottom, right, top


def read_layers() -> list[list[str]]:
    """The contract's layers, highest first; modeling's own layers stand in its place."""
    contracts = api.read_configuration()["contracts_options"]
    outer, inner = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rows = [row.split(" | ") for row in outer if row != "__main__"]  # which calls cli by name
    at = rows.index(["modeling"])
    return rows[:at] + [[f"modeling.{name}"] for name in inner] + rows[at + 1 :]


def read_arrows(packages: list[str]) -> set[tuple[str, str]]:
    """(importer, imported) for each pair of packages, without those that follow from others."""
    graph = grimp.build_graph("d2kd")

    def owners(module: str) -> set[str]:
        found = {name for name in packages if f"{module}.".startswith(f"d2kd.{name}.")}
        if found:
            return found
        # d2kd and d2kd.modeling offer names of packages inside them
        return set().union(*map(owners, graph.find_modules_directly_imported_by(module)))

    below: dict[str, set[str]] = {name: set() for name in packages}
    for name in packages:
        for module in {f"d2kd.{name}", *graph.find_descendants(f"d2kd.{name}")}:
            for imported in graph.find_modules_directly_imported_by(module):
                below[name] |= owners(imported) - {name}

    def reach(name: str) -> set[str]:
        return below[name].union(*map(reach, below[name]))

    return {(a, b) for a in packages for b in below[a] if not any(b in reach(c) for c in below[a])}


def place(rows: list[list[str]]) -> dict[str, Box]:
    boxes = {}
    for i, name in ((i, name) for i, row in enumerate(reversed(rows)) for name in row):
        x, width, _ = PLACES[name]
        y = i * (HEIGHT + GAP)
        boxes[name] = (x - width / 2, y, x + width / 2, y + HEIGHT)
    return boxes


def lines_between(source: Box, target: Box) -> Iterator[Line]:
    """From the bottom or the sides of one box to the top or the sides of the other."""
    left, right = max(source[0], target[0]), min(source[2], target[2])
    for i in range(int(left * 10) + 1, math.ceil(right * 10)):
        yield (i / 10, source[1]), (i / 10, target[3])
    yield from product(ports(source, source[1]), ports(target, target[3]))


def ports(box: Box, edge: float) -> list[Point]:
    left, bottom, right, top = box
    middle = (bottom + top) / 2
    return [(left + (right - left) * i / 16, edge) for i in range(1, 16)] + [(left, middle), (right, middle)]


def hits(a: Point, b: Point, box: Box, margin: float = 0.08) -> bool:
    """Whether the line from ``a`` to ``b`` comes near the box."""
    points = ((a[0] + (b[0] - a[0]) * t / 200, a[1] + (b[1] - a[1]) * t / 200) for t in range(201))
    left, bottom, right, top = box
    return any(left - margin < x < right + margin and bottom - margin < y < top + margin for x, y in points)


def route(arrow: tuple[str, str], boxes: dict[str, Box], drawn: list[Line]) -> Line:
    """The steepest straight line from one box to the other that meets no third box, and keeps off drawn arrows."""
    source, target = (boxes[name] for name in arrow)
    others = [box for name, box in boxes.items() if name not in arrow]
    if not any(name.startswith("modeling.") for name in arrow):
        others.append(frame(boxes))

    def cost(line: Line) -> float:
        (ax, ay), (bx, by) = line
        off_centre = sum(abs(x - (b[0] + b[2]) / 2) / (b[2] - b[0]) for x, b in ((ax, source), (bx, target)))
        close = sum(math.dist(p, q) < 0.2 for other in drawn for p, q in product(line, other))
        return abs(ax - bx) + off_centre + 5 * close

    for a, b in sorted(lines_between(source, target), key=cost):
        if a[1] > b[1] and not any(hits(a, b, box) for box in others):
            return a, b
    raise SystemExit(f"No straight line from {arrow[0]} to {arrow[1]}: change PLACES, or the import goes upwards.")


def frame(boxes: dict[str, Box]) -> Box:
    """Around the packages inside modeling, with room for its name."""
    left, bottom, right, top = zip(*(box for name, box in boxes.items() if name.startswith("modeling.")))
    return min(left) - 0.2, min(bottom) - 0.3, max(right) + 0.2, max(top) + 0.12


def draw_box(axes: Axes, box: Box, **style: str) -> None:
    left, bottom, right, top = box
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((left, bottom), right - left, top - bottom, boxstyle=shape, **style))


def main() -> None:
    rows = read_layers()
    boxes = place(rows)
    figure = Figure(figsize=(10, 10.4), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-0.3, boxes["cli"][3] + 0.3))
    axes.axis("off")

    outer = frame(boxes)
    draw_box(axes, outer, facecolor="#f4f4f4", edgecolor="#9a9a9a", linestyle="--")
    axes.text(5, outer[1] + 0.15, "modeling", fontsize=11, ha="center", va="center", color="#606060", style="italic")
    for name, box in boxes.items():
        draw_box(axes, box, facecolor="#dcebf7" if name in TORCH_ONLY else "#fdf1dc", edgecolor="#404040")
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        axes.text(x, y + 0.1, name.rpartition(".")[2], fontsize=13, weight="bold", ha="center", va="center")
        axes.text(x, y - 0.16, PLACES[name][2], fontsize=10.5, ha="center", va="center")
    drawn: list[Line] = []
    for arrow in sorted(read_arrows(list(boxes))):
        a, b = route(arrow, boxes, drawn)
        drawn.append((a, b))
        style = dict(arrowstyle="-|>", color="#404040", shrinkA=0, shrinkB=0, mutation_scale=14, linewidth=1.3)
        axes.annotate("", b, a, arrowprops=style)
    figure.savefig(OUTPUT)
    print(f"{OUTPUT}: {len(boxes)} packages, {len(drawn)} arrows")


if __name__ == "__main__":
    main()
