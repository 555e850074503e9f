"""The cases of a student and a teacher: the floor, the distilled steps and their parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn

from d2kd.cli.benchmark_data import Batch
from d2kd.cli.benchmark_measure import Case
from d2kd.losses import DistillationLoss
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.adapters import Taps, cross_head, get_adapter, preset_families, record_taps, tap_index, tap_indices
from d2kd.modeling.detectors.interface import label_anchors_of, make_anchors
from d2kd.modeling.distillation.examination import examine
from d2kd.modeling.distillation.gradient_shares import gradient_shares
from d2kd.modeling.distillation.preflight import IMAGES
from d2kd.modeling.distillation.teacher import Teacher
from d2kd.regions import run_region
from d2kd.structures import Assignment, DenseOutput

__all__ = [
    "ENGINES",
    "ITERATION",
    "STUDENT",
    "TEACHER",
    "Composition",
    "distill_pair",
    "engine_case",
    "losses_of",
    "make_cases",
    "run_detector",
]

STUDENT, TEACHER = "student step", "teacher forward"

#: What the tables call an engine of the teacher -> the arguments of :class:`Teacher` that choose it.
ENGINES: Mapping[str, Mapping[str, Any]] = {
    f"{engine}, {precision}": {"engine": engine, "precision": precision}
    for precision in ("fp32", "bf16")
    for engine in ("eager", "folded")
}

# A step when every schedule has come to its end.
ITERATION = 10**6

#: What a loss is given: the output of its source, that of the teacher, its regions.
Inputs = tuple[DenseOutput, DenseOutput, Sequence[Tensor]]
#: What a region is made of: its function with options, and the source.
RegionKey = tuple[tuple[Any, ...], tuple[str, int]]
T = TypeVar("T")


@dataclass(frozen=True)
class Composition:
    """
    The names of a method's cases.

    Attributes:
        step: the distilled step.
        floor: the student's step, the teacher's forward pass, and for crossed losses what the teacher's head does with
            the student's taps.
        parts: its regions and losses.
    """

    step: str
    floor: list[str]
    parts: list[str]


def make_cases(
    student: DenseDetector,
    teacher: DenseDetector,
    batch: Batch,
    methods: Sequence[str],
    *,
    watched: str | None = None,
) -> tuple[list[Case], dict[str, Composition]]:
    """
    All cases in the order in which a round runs them, and which of them are whose.

    Args:
        watched: a method of which also is measured what looks after a run.
    """
    build = partial(distill_pair, student, deepcopy(teacher))  # what becomes of the copy must not reach the floor
    models, compositions = {}, {}
    crossings: dict[str, int] = {}
    regions: dict[str, RegionKey] = {}
    different: dict[str, DictConfig] = {}
    for method in methods:
        nodes = losses_of(method, student)
        models[method] = build(nodes)
        step, floor, parts = f"step: {method}", [STUDENT, TEACHER], []
        for name, loss in models[method].losses.items():
            if loss.source == "crossed":
                floor.append(f"crossed blocks, tail {loss.tail}")
                crossings[floor[-1]] = loss.tail
            parts.append("loss: " + _register(different, name, nodes[name], method))
            for spec in loss.regions:
                key = spec.function_key, loss.source_key
                parts.append("region: " + _register(regions, spec.function, key, method))
        compositions[method] = Composition(step, *(list(dict.fromkeys(names)) for names in (floor, parts)))

    floor_cases = [_step_case(STUDENT, student, batch), _forward_case(TEACHER, teacher, batch)]
    floor_cases += [_crossing_case(name, student, teacher, batch, tail) for name, tail in crossings.items()]
    steps = [_step_case(compositions[method].step, model, batch) for method, model in models.items()]
    # Other work on the machine comes and goes: the steps stand on both sides of what they are compared with.
    half = len(steps) // 2
    cases = [*steps[:half], *floor_cases, *_engine_cases(teacher, batch), *steps[half:]]
    if models:
        cases += _part_cases(build(different), regions, batch)
    if watched in models:
        cases += _watching_cases(models[watched], batch)
    return cases, compositions


def _register(known: dict[str, T], name: str, value: T, method: str) -> str:
    """The name under which ``value`` is known then: ``name``, with the method's where another value has it."""
    found = next((other for other, x in known.items() if x == value), None)
    if found is None:
        found = f"{name}_of_{method}" if name in known else name
        known[found] = value
    return found


def distill_pair(student: DenseDetector, teacher: DenseDetector, losses: Mapping[str, DictConfig]) -> DistilledDetector:
    node = {"model": teacher, "preflight": "off"}  # of random weights
    model = DistilledDetector(student=student, teacher=node, losses=losses).train()
    model.load_teacher()
    return model


def _engine_cases(teacher: DenseDetector, batch: Batch) -> list[Case]:
    """The teacher's forward pass by each of :data:`ENGINES`."""
    cases = []
    for name, options in ENGINES.items():
        held = Teacher(deepcopy(teacher), **options)
        held.load(teacher.device, next(teacher.parameters()).dtype)
        cases.append(_forward_case(engine_case(name), held.detector, batch))
    return cases


def engine_case(engine: str) -> str:
    return f"{TEACHER}, {engine}"


def losses_of(method: str, student: DenseDetector) -> dict[str, DictConfig]:
    """A preset without what it turns off."""
    losses = get_losses(method, *preset_families(type(student)))
    depth = min(len(blocks) for blocks in get_adapter(student).towers(student.head).values())
    for node in losses.values():
        if "tail" in node:
            node.tail = min(node.tail, depth - 1)  # as the digits' configs do, whose heads have two blocks
    return {name: node for name, node in losses.items() if node.weight > 0}


def _step_case(name: str, model: nn.Module, batch: Batch) -> Case:
    def run(_: None) -> None:
        with EventStorage(ITERATION):
            torch.stack(list(model(batch).values())).sum().backward()

    return Case(name, run, setup=model.zero_grad)


def _forward_case(name: str, detector: DenseDetector, batch: Batch) -> Case:
    return Case(name, lambda _: run_detector(detector, batch))


@torch.no_grad()
def run_detector(detector: DenseDetector, batch: Batch) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Features and predictions."""
    maps = detector.backbone(detector.preprocess_image(batch).tensor)
    features = [maps[name] for name in detector.head_in_features]
    return features, detector.head(features)


def _crossing_case(name: str, student: DenseDetector, teacher: DenseDetector, batch: Batch, tail: int) -> Case:
    """The teacher's last blocks and predictors on the student's taps, forward and backward to these."""
    adapter, towers = get_adapter(teacher), get_adapter(student).towers(student.head)
    features, _ = run_detector(student, batch)
    with torch.no_grad(), record_taps(towers, tap_indices(student, [tail]), features) as taps:
        student.head(features)
    cross = partial(
        cross_head,
        adapter,
        teacher.head,
        teacher_taps={},
        student_indices={branch: tap_index(student, branch, tail) for branch in towers},
        teacher_indices={branch: tap_index(teacher, branch, tail) for branch in towers},
        levels=range(len(features)),
        align=False,
    )

    def run(inputs: Taps) -> None:
        outputs = [x for maps in cross(inputs) for x in maps]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    return Case(name, run, setup=lambda: {key: _leaves(maps) for key, maps in taps.items()})


def _part_cases(model: DistilledDetector, regions: Mapping[str, RegionKey], batch: Batch) -> list[Case]:
    """
    Each region, and each loss of ``model``, forward and backward to what its source predicted. What reads boxes decodes
    them.
    """
    inputs = _inputs(model, batch)
    assignment = _assignment(model.student, batch)
    sources = {model.losses[name].source_key: source for name, (source, _, _) in inputs.items()}
    _, output, _ = next(iter(inputs.values()))

    def undecoded(key: RegionKey) -> tuple[DenseOutput, DenseOutput]:
        return replace(sources[key[1]]), replace(output)

    def make(key: RegionKey, outputs: tuple[DenseOutput, DenseOutput]) -> None:
        function, *options = key[0]
        run_region(function, *outputs, assignment, dict(options))

    def leaves(name: str) -> Inputs:
        source, _, region = inputs[name]
        return _with_leaves(source), replace(output), region

    def train(loss: DistillationLoss, given: Inputs) -> None:
        loss(*given).sum().backward()

    cases = [Case(f"region: {name}", partial(make, key), partial(undecoded, key)) for name, key in regions.items()]
    return cases + [Case(f"loss: {name}", partial(train, x), partial(leaves, name)) for name, x in model.losses.items()]


def _watching_cases(model: DistilledDetector, batch: Batch) -> list[Case]:
    """What looks after a run now and then: the terms' gradient shares, and once the teacher's examination."""

    def step() -> tuple[dict[str, Tensor], list[Tensor]]:
        given: list[list[Tensor]] = []
        hook = model.student.head.register_forward_pre_hook(lambda head, args: given.append(args[0]))
        with EventStorage(ITERATION):
            losses = model(batch)
        hook.remove()
        return losses, given[0]

    teacher = model.teacher
    assert teacher is not None
    images = [*batch] * -(-IMAGES // len(batch))
    look = partial(examine, model.student, teacher, model.overlap, images[:IMAGES], input_format=model.input_format)
    return [
        Case("gradient shares", lambda given: gradient_shares(*given), step),
        Case(f"examination of the teacher on {IMAGES} images", lambda _: look()),
    ]


def _inputs(model: DistilledDetector, batch: Batch) -> dict[str, Inputs]:
    """What each loss is given in a step of ``model``."""
    inputs: dict[str, Inputs] = {}
    names = {loss: name for name, loss in model.losses.items()}
    hooks = [x.register_forward_pre_hook(lambda loss, given: inputs.update({names[loss]: given})) for x in names]
    with EventStorage(ITERATION), torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return inputs


def _assignment(detector: DenseDetector, batch: Batch) -> Assignment:
    features, predictions = run_detector(detector, batch)
    instances = [item["instances"] for item in batch]
    labelled = label_anchors_of(detector)(make_anchors(detector, features), instances)
    sizes = [(x.shape[-2], x.shape[-1]) for x in features]
    return get_adapter(detector).assignment(detector, labelled, instances, sizes)


def _with_leaves(output: DenseOutput) -> DenseOutput:
    return replace(
        output,
        logits=_leaves(output.logits),
        box_params=_leaves(output.box_params),
        centerness=_leaves(output.centerness) if output.centerness else None,
        features=_leaves(output.features) if output.features else None,
    )


def _leaves(maps: Iterable[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in maps]
