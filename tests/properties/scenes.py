"""What the property tests draw: dense outputs of any shape, dtype and size of logits, and labels. No detectron2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from d2kd.structures import Assignment, DenseOutput

#: The same few examples in every run.
QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STRIDE = 8.0


@dataclass(frozen=True)
class Shape:
    """Images, (H, W) of each level, anchors a cell, classes, bins of a side (None: four numbers), channels."""

    images: int
    sizes: tuple[tuple[int, int], ...]
    anchors: int
    classes: int
    bins: int | None
    channels: int


@dataclass(frozen=True)
class Scene:
    """
    A student's and a teacher's dense outputs in the same anchors, and the labels of these; the maps of the student
    require gradients.
    """

    shape: Shape
    seed: int
    student: DenseOutput
    teacher: DenseOutput
    assignment: Assignment

    def inputs(self) -> list[Tensor]:
        """What the student's head and backbone made."""
        output = self.student
        return [*output.logits, *output.box_params, *(output.centerness or ()), *(output.features or ())]

    def of_images(self, images: Sequence[int] | slice) -> Scene:
        """Of some images, in this order."""

        def pick(maps: list[Tensor] | None) -> list[Tensor] | None:
            return None if maps is None else [x[images] for x in maps]

        def of(output: DenseOutput) -> DenseOutput:
            names = ("logits", "box_params", "centerness", "features")
            return replace(output, **{name: pick(getattr(output, name)) for name in names})

        labels = self.assignment
        numbers = torch.arange(self.shape.images)[images].tolist()
        assignment = replace(
            labels,
            labels=pick(labels.labels),
            valid=pick(labels.valid),
            gt_boxes=[labels.gt_boxes[n] for n in numbers],
            gt_classes=[labels.gt_classes[n] for n in numbers],
            num_labelled=len(numbers),
        )
        shape = replace(self.shape, images=len(numbers))
        return replace(self, shape=shape, student=of(self.student), teacher=of(self.teacher), assignment=assignment)

    def of_cells(self, move: Callable[[Tensor, int, int], Tensor]) -> Scene:
        """With the cells of every level elsewhere; ``move`` is given a tensor and the axes of its rows and columns."""

        def at(maps: list[Tensor] | None, row: int = -2, column: int = -1) -> list[Tensor] | None:
            return None if maps is None else [move(x, row, column) for x in maps]

        def of(output: DenseOutput) -> DenseOutput:
            names = ("logits", "box_params", "centerness", "features")
            moved = {name: at(getattr(output, name)) for name in names}
            return replace(output, **moved, anchors=at(output.anchors, -3, -2))

        labels = replace(self.assignment, labels=at(self.assignment.labels), valid=at(self.assignment.valid))
        return replace(self, student=of(self.student), teacher=of(self.teacher), assignment=labels)


def rolled(x: Tensor, row: int, column: int) -> Tensor:
    """Every cell in another place: turned upside down, and all columns one further."""
    return x.flip(row).roll(1, column)


def make_scene(
    shape: Shape, *, seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0, objects: int = 2
) -> Scene:
    """
    Args:
        scale: magnitude of logits, box parameters and features; from 10 on most are at plus or minus that.
        objects: of the first image, one fewer of the next, and so on.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        return (values if scale < 10 else (4 * values).clamp(-1, 1)) * scale

    def output(seed: int) -> DenseOutput:
        made = DenseOutput([], [], anchors, decode=decode, centerness=[], features=[])
        assert made.centerness is not None and made.features is not None
        coding = (4,) if shape.bins is None else (4, shape.bins)
        for h, w in shape.sizes:
            made.logits.append(draw(shape.images, shape.anchors, shape.classes, h, w).to(dtype))
            made.box_params.append(draw(shape.images, shape.anchors, *coding, h, w).to(dtype))
            made.centerness.append(draw(shape.images, shape.anchors, h, w).to(dtype))
            made.features.append(draw(shape.images, shape.channels, h, w).to(dtype))
        return made

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    anchors = []
    for level, (h, w) in enumerate(shape.sizes):
        stride = STRIDE * 2**level
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        # No two alike, nor equally far from an object.
        centers = stride * (torch.stack([x, y], dim=-1) + 0.2 * uniform(shape.anchors, h, w, 2))
        half = stride * (0.8 + 0.6 * uniform(shape.anchors, h, w, 2))
        anchors.append(torch.cat([centers - half, centers + half], dim=-1))
    student, teacher = output(0), output(1)
    for maps in (student.logits, student.box_params, student.centerness, student.features):
        for x in maps or ():
            x.requires_grad_()

    height, width = (max(size[axis] * STRIDE * 2**i for i, size in enumerate(shape.sizes)) for axis in (0, 1))
    counts = [max(objects - n, 0) for n in range(shape.images)]
    corners = [uniform(count, 2) * torch.tensor([width, height]) for count in counts]
    labels = []
    for h, w in shape.sizes:
        size = (shape.images, shape.anchors, h, w)
        drawn = torch.randint(-1, shape.classes + 1, size, generator=generator)
        # Two thirds are background.
        level_labels = torch.where(uniform(*size) < 1 / 3, drawn, shape.classes)
        # No object, no positive.
        for n, count in enumerate(counts):
            level_labels[n] = level_labels[n] if count else torch.where(level_labels[n] < 0, -1, shape.classes)
        labels.append(level_labels)
    assignment = Assignment(
        labels=labels,
        valid=[x >= 0 for x in labels],
        gt_boxes=[torch.cat([x, x + 4 + 24 * uniform(*x.shape)], dim=-1) for x in corners],
        gt_classes=[torch.randint(0, shape.classes, (count,), generator=generator) for count in counts],
        num_classes=shape.classes,
        num_labelled=shape.images,
    )
    return Scene(shape, seed, student, teacher, assignment)


def decode(params: Tensor, anchors: Tensor, level: int) -> Tensor:
    """Boxes (N, A, H, W, 4) of offsets to an anchor's corners, or of distributions of distances from its centre."""
    params = params.to(torch.promote_types(params.dtype, torch.float32))
    if params.dim() == 5:
        return anchors.to(params.dtype) + params.movedim(2, -1)
    bins = torch.arange(params.shape[3], dtype=params.dtype)[:, None, None]
    left, top, right, bottom = (STRIDE * (params.softmax(dim=3) * bins).sum(dim=3)).unbind(dim=2)
    x, y = ((anchors[..., axis] + anchors[..., axis + 2]).to(params.dtype) / 2 for axis in (0, 1))
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


SIDES = st.integers(1, 4)


def shapes(*, bins: bool | None = None, min_images: int = 1) -> st.SearchStrategy[Shape]:
    """``bins``: distributions or none; None: either."""
    distributions = st.integers(2, 5)
    return st.builds(
        Shape,
        images=st.integers(min_images, 3),
        sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3).map(tuple),
        anchors=st.integers(1, 2),
        classes=st.integers(1, 4),
        bins=st.none() if bins is False else distributions if bins else st.none() | distributions,
        channels=st.integers(1, 4),
    )


SEEDS = st.integers(0, 2**20)
SCALES = st.sampled_from([1.0, 30.0, 1e4])
OBJECTS = st.integers(0, 3)
