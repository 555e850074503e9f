"""What a training step does with one image: where each region lies, where teacher and student differ, what is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2kd.losses import DistillationLoss
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors.interface import make_anchors, strides_of
from d2kd.modeling.distillation.student_step import predict
from d2kd.structures import DenseOutput, kept_random_state

__all__ = ["Cells", "HeatMap", "StepView", "look_at_step"]

#: What a loss was given in the step: the anchors of its source, and its regions, per level (R, N, A, H, W).
_Given = dict[str, tuple[list[Tensor], list[Tensor]]]


class Cells(NamedTuple):
    """
    A number >= 0 for each cell of one level.

    Attributes:
        values: (H, W), on the CPU; cells whose centre is outside the image are left out.
        first: (x, y), the centre of the first cell, in pixels of the image.
        stride: between two centres.
    """

    values: Tensor
    first: tuple[float, float]
    stride: int


@dataclass(frozen=True)
class HeatMap:
    """
    One quantity on each level.

    Attributes:
        title, subtitle: what it is.
        levels: of it, in the order of :attr:`StepView.levels`.
        notes: a few words on each level.
    """

    title: str
    subtitle: str
    levels: list[Cells]
    notes: list[str]


@dataclass(frozen=True)
class StepView:
    """
    What distillation does with one image.

    Attributes:
        levels: the levels that student and teacher have in common, in words.
        maps: the regions of the step's losses that differ from place to place, the gap, and the gradient.
        remarks: what has no map, in sentences.
    """

    levels: list[str]
    maps: list[HeatMap]
    remarks: list[str]


def look_at_step(model: DistilledDetector, item: Mapping[str, Any], iteration: int) -> StepView:
    """
    A training step of one image, by a copy of the model, so that the model and the random state stay as they are.
    Norms use their running statistics and dropout is off, as in the student that is evaluated: statistics of one image
    say nothing of a batch's. With several ranks every rank must call it, with the same image.

    Args:
        model: with its teacher.
        item: as of a training batch. Without "instances" it is an image without labels.
        iteration: of the losses' schedules.

    Raises:
        FloatingPointError, ValueError, TypeError: as of a training step.
    """
    twin = model.twin().train()
    for child in twin.student.children():
        child.eval()
    seen: list[list[Tensor]] = []
    given: _Given = {}
    twin.student.head.register_forward_pre_hook(lambda _, args: seen.append(list(args[0])))
    for name, loss in twin.losses.items():
        loss.register_forward_pre_hook(_recorder(given, name))
    # What TorchScript compiles after its first calls is left for training to call.
    with kept_random_state(twin.device), torch.enable_grad(), torch.jit.optimized_execution(False):
        with EventStorage(iteration):
            losses = twin([dict(item)])
        levels = [seen[0][level] for level in twin.overlap.student_levels]
        total = sum((x for name, x in losses.items() if name.startswith("loss_kd_")), torch.zeros(()))
        gradients = _gradients(total, levels)
    size = item["image"].shape[-2:]
    strides = [strides_of(twin.student)[level] for level in twin.overlap.student_levels]
    anchors = make_anchors(twin.student, seen[0])
    centers = [_center(anchors[level].tensor[0]) for level in twin.overlap.student_levels]

    def cells(values: Sequence[Tensor], firsts: Sequence[tuple[float, float]]) -> list[Cells]:
        return [_cells(*level, size) for level in zip(values, firsts, strides, strict=True)]

    maps, remarks = _region_maps(twin.losses, given, cells)
    gap = cells(_gap(twin, item), centers)
    largest = [f"largest {x.values.max():.2f}" for x in gap]
    maps.append(HeatMap("|pₜ − pₛ|", "gap of teacher's and student's class scores", gap, largest))
    if gradients is None:
        remarks.append("The student's features need no gradient (a frozen backbone), so distillation sends them none.")
    else:
        sent = cells(gradients, centers)
        maps.append(HeatMap("gradient", "of distillation, at the student's features", sent, _shares(sent)))
    names = [str(twin.student.head_in_features[level]).upper() for level in twin.overlap.student_levels]
    return StepView([f"{name}\nstride {stride}" for name, stride in zip(names, strides)], maps, remarks)


def _recorder(given: _Given, name: str) -> Callable[[nn.Module, tuple[DenseOutput, DenseOutput, list[Tensor]]], None]:
    def record(loss: nn.Module, args: tuple[DenseOutput, DenseOutput, list[Tensor]]) -> None:
        source, _, regions = args
        given[name] = source.anchors, [x if x.dim() == 5 else x[None] for x in regions]

    return record


def _gradients(total: Tensor, features: Sequence[Tensor]) -> list[Tensor] | None:
    """Of each level (H, W), the norm over channels; None: the features are in no graph."""
    if not all(x.requires_grad for x in features):
        return None
    if not total.requires_grad:
        return [x.new_zeros(x.shape[-2:]) for x in features]
    found = torch.autograd.grad(total, list(features), allow_unused=True)
    return [torch.zeros_like(x[0, 0]) if g is None else g[0].norm(dim=0) for g, x in zip(found, features)]


@torch.no_grad()
def _gap(model: DistilledDetector, item: Mapping[str, Any]) -> list[Tensor]:
    """
    Of each level (H, W), the largest difference of the two detectors' class scores, of any class and anchor. Where
    their anchors differ, those of a cell with the highest scores are compared.
    """
    overlap, teacher = model.overlap, model.teacher
    assert teacher is not None  # it has just taught
    images = model.student.preprocess_image([dict(item)])
    output = predict(model.student, images).output.select(overlap.student_levels).with_classes(overlap.student_classes)
    taught = teacher.run(
        [item],
        input_format=model.input_format,
        canvas=(images.tensor.shape[-2], images.tensor.shape[-1]),
        levels=overlap.teacher_levels,
        tap_indices={},
    ).crop(output.sizes)
    gaps = []
    for ours, theirs in zip(output.logits, taught.output.merge_classes(overlap.teacher_classes).logits):
        scores = [x[0].float().sigmoid() for x in (ours, theirs)]  # (A, K, H, W)
        if not overlap.same_anchors:
            scores = [x.amax(0) for x in scores]
        gaps.append((scores[0] - scores[1]).abs().flatten(0, -3).amax(0))
    return gaps


def _region_maps(
    losses: Mapping[str, DistillationLoss],
    given: _Given,
    cells: Callable[[Sequence[Tensor], Sequence[tuple[float, float]]], list[Cells]],
) -> tuple[list[HeatMap], list[str]]:
    """The regions that differ from place to place, once each, with the losses that read them; and remarks on others."""
    drawn: dict[str, list[tuple[list[Cells], list[str]]]] = {}  # region's name -> its maps, which options tell apart
    everywhere: list[str] = []
    empty: list[str] = []
    for name, (anchors, regions) in given.items():
        firsts = [_center(x[0, 0, 0]) for x in anchors]
        for index, spec in enumerate(losses[name].regions):
            found = cells([x[index, 0].amax(0) for x in regions], firsts)  # of a cell's anchors the largest
            title = (spec.member or spec.function).replace("_", " ")
            values = torch.cat([x.values.flatten() for x in found])
            if values.min() == values.max():
                if values.max() > 0:
                    everywhere.append(name)
                else:
                    empty.append(f"{title} ({name})")
                continue
            same = (x for x in drawn.setdefault(title, []) if all(_equal(*pair) for pair in zip(x[0], found)))
            owners = next(same, None)
            if owners is None:
                drawn[title].append((found, [name]))
            elif name not in owners[1]:
                owners[1].append(name)
    maps = [
        HeatMap(title, f"region of {', '.join(owners)}", levels, _shares(levels))
        for title, each in drawn.items()
        for levels, owners in each
    ]
    remarks = {"Everywhere alike": everywhere, "Empty on this image": empty}
    return maps, [f"{what}: {', '.join(dict.fromkeys(names))}." for what, names in remarks.items() if names]


def _shares(levels: Sequence[Cells]) -> list[str]:
    sums = [float(x.values.sum()) for x in levels]
    return [f"{x / sum(sums):.0%} of the sum" if sum(sums) else "0" for x in sums]


def _equal(one: Cells, other: Cells) -> bool:
    return torch.equal(one.values, other.values)


def _center(anchor: Tensor) -> tuple[float, float]:
    x0, y0, x1, y1 = anchor.tolist()
    return (x0 + x1) / 2, (y0 + y1) / 2


def _cells(values: Tensor, first: tuple[float, float], stride: int, size: Sequence[int]) -> Cells:
    """
    Args:
        values: (H, W) of the padded canvas.
        size: (height, width) of the image.
    """
    rows, columns = (
        sum(start + stride * index < side for index in range(count))
        for start, side, count in zip(reversed(first), size, values.shape)
    )
    return Cells(values[: max(rows, 1), : max(columns, 1)].detach().float().cpu(), first, stride)
