"""What d2kd benchmark measures: a student, a teacher, and the parts of a distilled step, as cases to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

import d2kd
from d2kd.losses import DistillationLoss, binary_classification_kd
from d2kd.methods import METHODS, get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.adapters import Taps
from d2kd.modeling.distillation.crossing import crossed_assignment, crossed_output
from d2kd.modeling.distillation.pairing import check_pairing
from d2kd.modeling.distillation.step_regions import make_regions, stack_regions
from d2kd.modeling.distillation.student_step import labels_of, predict, train_student
from d2kd.modeling.distillation.teacher import run_teacher

# A step when every schedule has come to its end.
ITERATION = 10**6
STUDENT, TEACHER = "student step", "teacher forward"
ANALYTIC, RESTATED = "classification kernel, as shipped", "classification kernel, plain autograd"


@dataclasses.dataclass
class Case:
    """One thing to measure: ``run(setup())``; only ``run`` is on the clock. ``group`` is the method it belongs to."""

    name: str
    run: Callable[[Any], Any]
    setup: Callable[[], Any] = lambda: None
    group: str = ""


def build_detector(name: str, *, depth: int, channels: int, classes: int) -> DenseDetector:
    """The packaged config ``common/models/<name>.py`` at another ResNet depth and width of FPN and head."""
    node = d2kd.get_config(f"common/models/{name}.py").model
    node.num_classes = classes
    node.backbone.out_channels = channels
    node.head.input_shape = [ShapeSpec(channels=channels)] * len(node.head_in_features)
    node.head.conv_dims = [channels] * len(node.head.conv_dims)
    stages = node.backbone.bottom_up.stages
    stages.depth = depth
    if depth < 50:
        stages.pop("stride_in_1x1", None)  # basic blocks have no 1x1 convolution to put the stride in
    if "in_feature" in node.backbone.top_block:  # FCOS makes p6 from p5, RetinaNet from res5
        node.backbone.top_block.in_channels = channels
    else:
        node.backbone.top_block.in_channels = 512 if depth < 50 else 2048
    return instantiate(node)


def make_batch(
    images: int, size: tuple[int, int], classes: int, objects: int, device: torch.device
) -> list[dict[str, Any]]:
    """Noise images on ``device``, each with ``objects`` boxes an eighth to a half of the image's sides."""
    height, width = size
    scale = torch.tensor([width, height], dtype=torch.float32)
    batch = []
    for _ in range(images):
        sides = torch.empty(objects, 2).uniform_(1 / 8, 1 / 2) * scale
        corners = torch.rand(objects, 2) * (scale - sides)
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)),
            gt_classes=torch.randint(classes, (objects,)),
        )
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image.to(device), "instances": instances.to(device)})
    return batch


def restated_kernel(student: Tensor, teacher: Tensor, *, weight: Tensor, dim: int) -> Tensor:
    """BCKD's classification term (beta = 1) in plain autograd, for comparison: the sum over ``weight``ed locations."""
    target = teacher.detach().sigmoid()
    gap = (student.sigmoid() - target).abs()
    loss = F.binary_cross_entropy_with_logits(student, target, reduction="none") * gap
    return (loss.sum(dim) * weight).sum()


def methods_for(student: DenseDetector, teacher: DenseDetector) -> list[str]:
    """The presets that fit this pair: LD, for instance, needs heads that predict distributions."""
    fitting = []
    for method in METHODS:
        losses = {name: instantiate(node) for name, node in get_losses(method, type(student).__name__).items()}
        try:
            check_pairing(student, teacher, losses)
        except ValueError as error:
            print(f"Without {method}: {error}")
        else:
            fitting.append(method)
    return fitting


def make_cases(
    student: DenseDetector, teacher: DenseDetector, batch: list[dict[str, Any]], methods: Sequence[str]
) -> list[Case]:
    """Every case of the benchmark, in the order in which a round runs them."""
    cases = [_step(STUDENT, student, batch), Case(TEACHER, lambda _: _teacher_forward(teacher, batch))]
    family = type(student).__name__
    models = {
        method: DistilledDetector(
            student=student, teacher={"model": teacher}, losses=get_losses(method, family)
        ).train()
        for method in methods
    }
    for method, model in models.items():
        model.load_teacher()
        cases.append(_step("distilled step", model, batch, method))
    for method, model in models.items():
        cases += _part_cases(method, model, batch)
    return cases + _kernel_cases(student, teacher, batch)


def _step(name: str, model: nn.Module, batch: list[dict[str, Any]], group: str = "") -> Case:
    def run(_: None) -> None:
        with EventStorage(ITERATION):
            _sum(model(batch).values()).backward()

    return Case(name, run, setup=lambda: model.zero_grad(set_to_none=True), group=group)


@torch.no_grad()
def _teacher_forward(teacher: DenseDetector, batch: list[dict[str, Any]]) -> list[list[Tensor]]:
    features = teacher.backbone(teacher.preprocess_image(batch).tensor)
    return teacher.head([features[name] for name in teacher.head_in_features])


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


def _leaves(maps: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in maps]


def _part_cases(method: str, model: DistilledDetector, batch: list[dict[str, Any]]) -> list[Case]:
    losses = {name: loss for name, loss in model.losses.items() if loss.weight > 0}
    tails = {loss.tail for loss in losses.values() if loss.source == "crossed"}
    taught, held, overlap = model.student, model.teacher, model.overlap
    assert held is not None  # a method has losses
    teaching = held.detector
    with EventStorage(ITERATION), torch.no_grad():
        images = taught.preprocess_image(batch)
        teacher = run_teacher(held, images, batch, overlap, losses.values(), input_format=model.input_format)
        labels = labels_of(taught, images, batch)
        prediction = predict(taught, images, tails)
        student = train_student(taught, images, prediction, labels, num_labelled=len(batch), overlap=overlap)
        teacher = teacher.crop(student.output.sizes)
        crossed = {tail: crossed_output(taught, teaching, student.taps, teacher, overlap, tail=tail) for tail in tails}
        assignment = crossed_assignment(teaching, teacher, student.assignment, student.gt_instances, overlap)

    sources = {("student", 0): student.output, **{("crossed", tail): output for tail, output in crossed.items()}}
    assignments = {"student": student.assignment, "crossed": assignment}

    cases = []
    for tail in sorted(tails):

        def cross(taps: Taps, tail: int = tail) -> None:
            output = crossed_output(taught, teaching, taps, teacher, overlap, tail=tail)
            outputs = output.logits + output.box_params + (output.centerness or [])
            grads = [torch.ones_like(x) for x in outputs]
            torch.autograd.grad(outputs, [x for maps in taps.values() for x in maps], grads)

        cases.append(
            Case(
                "crossed output",
                cross,
                setup=lambda: {key: _leaves(maps) for key, maps in student.taps.items()},
                group=method,
            )
        )
    cases.append(Case("regions", lambda _: make_regions(losses, sources, teacher.output, assignments), group=method))
    for name, loss in losses.items():

        def fresh(name: str = name, loss: DistillationLoss = loss) -> tuple[Any, ...]:
            output = sources[loss.source_key]
            source = dataclasses.replace(
                output,
                logits=_leaves(output.logits),
                box_params=_leaves(output.box_params),
                centerness=_leaves(output.centerness) if output.centerness else None,
                features=_leaves(output.features) if output.features else None,
            )
            regions = make_regions({name: loss}, sources, teacher.output, assignments)[name]
            return source, dataclasses.replace(teacher.output), stack_regions(regions)

        def run(inputs: tuple[Any, ...], loss: DistillationLoss = loss) -> None:
            loss(*inputs).sum().backward()

        cases.append(Case(name, run, setup=fresh, group=method))
    return cases


def _kernel_cases(student: DenseDetector, teacher: DenseDetector, batch: list[dict[str, Any]]) -> list[Case]:
    with torch.no_grad():
        maps = [_teacher_forward(detector, batch)[0] for detector in (student, teacher)]
    ours, theirs = [[x.unflatten(1, (-1, student.num_classes)) for x in levels] for levels in maps]
    weights = [x.new_ones(x.shape[:2] + x.shape[3:]) for x in ours]

    def shipped(leaves: list[Tensor]) -> None:
        kernel = partial(binary_classification_kd, reduction="sum")
        _sum([kernel(z, t, weight=w, dim=2) for z, t, w in zip(leaves, theirs, weights)]).backward()

    def restated(leaves: list[Tensor]) -> None:
        _sum([restated_kernel(z, t, weight=w, dim=2) for z, t, w in zip(leaves, theirs, weights)]).backward()

    return [Case(name, run, lambda: _leaves(ours)) for name, run in ((ANALYTIC, shipped), (RESTATED, restated))]
