#!/usr/bin/env python3
"""
Time and memory of a distilled training step and of its parts, against what cannot be avoided: the student's own step
and the teacher's forward pass, measured in the same run. Random weights and images; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from d2kd.losses import binary_classification_kd
from d2kd.methods import METHODS, get_losses
from d2kd.modeling import DistilledDetector
from d2kd.regions import REGION_REGISTRY

FAMILIES = {"retinanet": "RetinaNet", "fcos": "FCOS"}
DEPTHS = (18, 34, 50, 101, 152)
OBJECTS_PER_IMAGE = 8
WARMUP_ROUNDS = 1
STUDENT, TEACHER = "student step", "teacher forward"
ANALYTIC, RESTATED = "classification kernel, as shipped", "classification kernel, plain autograd"

EPILOG = f"""
What is measured
  {STUDENT:15}  the stock detector: detection losses, forward and backward (no optimizer step)
  {TEACHER:15}  preprocessing, backbone and head under no_grad
  distilled step   DistilledDetector with the method's preset: forward and backward
  parts            the crossed output (forward and backward to the taps), the regions, each distillation loss (forward
                   and backward to the predictions, decoding of boxes included); "rest" is what no part accounts for
  restatement      BCKD's classification kernel as plain autograd would have it, beside d2kd's analytic one
Every round runs all of them one after the other, after {WARMUP_ROUNDS} round of warm-up, so that other work on the
machine falls on all alike. A time is the median over rounds; a ratio is the median of each round's own ratio.
Besides wall time the processor time of the process is given: other jobs disturb it less.

How memory is measured, in a pass of its own
  peak   above what is resident before the step (parameters, buffers, the batch; no gradients). On CUDA from
         torch.cuda.max_memory_allocated; on CPU the highest running total of torch's CPU allocator, from the memory
         events of torch.profiler (what libraries take past that allocator, such as oneDNN's scratch, is not in it).
  saved  bytes of the distinct storages that autograd saves for backward, parameters and buffers aside
         (torch.autograd.graph.saved_tensors_hooks). A saved view counts its whole storage, which it keeps alive.

Example
  $ OMP_NUM_THREADS=1 python tools/benchmark.py --detector fcos --methods bckd crosskd --device cpu --json out.json
"""


@dataclasses.dataclass
class Case:
    """One thing to measure: ``run(setup())``; only ``run`` is on the clock. ``group`` is the method it belongs to."""

    name: str
    run: Callable[[Any], Any]
    setup: Callable[[], Any] = lambda: None
    group: str = ""


# ---- what is measured ----------------------------------------------------------------------------------------------


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
        del stages["stride_in_1x1"]  # basic blocks have no 1x1 convolution to put the stride in
    if "in_feature" in node.backbone.top_block:  # FCOS makes p6 from p5, RetinaNet from res5
        node.backbone.top_block.in_channels = channels
    else:
        node.backbone.top_block.in_channels = 512 if depth < 50 else 2048
    return instantiate(node)


def make_batch(images: int, size: tuple[int, int], classes: int, device: torch.device) -> list[dict[str, Any]]:
    """Noise images on ``device``, with boxes an eighth to a half of the image's sides."""
    height, width = size
    scale = torch.tensor([width, height], dtype=torch.float32)
    batch = []
    for _ in range(images):
        sides = torch.empty(OBJECTS_PER_IMAGE, 2).uniform_(1 / 8, 1 / 2) * scale
        corners = torch.rand(OBJECTS_PER_IMAGE, 2) * (scale - sides)
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)),
            gt_classes=torch.randint(classes, (OBJECTS_PER_IMAGE,)),
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
        with EventStorage():
            sum(model(batch).values()).backward()

    return Case(name, run, setup=lambda: model.zero_grad(set_to_none=True), group=group)


@torch.no_grad()
def _teacher_forward(teacher: DenseDetector, batch: list[dict[str, Any]]) -> list[list[Tensor]]:
    features = teacher.backbone(teacher.preprocess_image(batch).tensor)
    return teacher.head([features[name] for name in teacher.head_in_features])


def _leaves(maps: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in maps]


def _part_cases(method: str, model: DistilledDetector, batch: list[dict[str, Any]]) -> list[Case]:
    tails = {loss.tail for loss in model.losses.values() if loss.source == "crossed"}
    with EventStorage(), torch.no_grad():
        student = model._run_student(batch, tails)
        teacher = model._run_teacher(batch, student, tails)
        crossed = {tail: model._cross(student, teacher, tail) for tail in tails}
        assignment = model._teacher_assignment(student) if tails else student.assignment

    def source_of(loss: nn.Module) -> Any:
        return crossed[loss.tail] if loss.source == "crossed" else student.output

    def assignment_of(loss: nn.Module) -> Any:
        return assignment if loss.source == "crossed" else student.assignment

    def region_of(loss: nn.Module) -> list[Tensor]:
        return REGION_REGISTRY.get(loss.region)(source_of(loss), teacher.output, assignment_of(loss))

    cases = []
    for tail in sorted(tails):

        def cross(taps: Mapping[Any, list[Tensor]], tail: int = tail) -> None:
            output = model._cross(dataclasses.replace(student, taps=taps), teacher, tail)
            outputs = output.logits + output.box_params
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
    distinct = list({(loss.region, loss.source, loss.tail): loss for loss in model.losses.values()}.values())
    cases.append(Case("regions", lambda _: [region_of(loss) for loss in distinct], group=method))
    for name, loss in model.losses.items():

        def fresh(loss: nn.Module = loss) -> tuple:
            output = source_of(loss)
            leaves = _leaves(output.logits), _leaves(output.box_params)
            source = dataclasses.replace(output, logits=leaves[0], box_params=leaves[1])
            return source, dataclasses.replace(teacher.output), region_of(loss)

        def run(inputs: tuple, loss: nn.Module = loss) -> None:
            loss(*inputs).backward()

        cases.append(Case(name, run, setup=fresh, group=method))
    return cases


def _kernel_cases(student: DenseDetector, teacher: DenseDetector, batch: list[dict[str, Any]]) -> list[Case]:
    with torch.no_grad():
        maps = [_teacher_forward(detector, batch)[0] for detector in (student, teacher)]
    ours, theirs = [[x.unflatten(1, (-1, student.num_classes)) for x in levels] for levels in maps]
    weights = [x.new_ones(x.shape[:2] + x.shape[3:]) for x in ours]

    def shipped(leaves: list[Tensor]) -> None:
        sum(
            binary_classification_kd(z, t, weight=w, dim=2, reduction="sum") for z, t, w in zip(leaves, theirs, weights)
        ).backward()

    def restated(leaves: list[Tensor]) -> None:
        sum(restated_kernel(z, t, weight=w, dim=2) for z, t, w in zip(leaves, theirs, weights)).backward()

    return [Case(name, run, lambda: _leaves(ours)) for name, run in ((ANALYTIC, shipped), (RESTATED, restated))]


# ---- how it is measured --------------------------------------------------------------------------------------------


def measure_time(cases: Sequence[Case], rounds: int, device: torch.device) -> list[dict[str, list[float]]]:
    """Seconds of each case in each round, the cases interleaved: per case ``{"wall": [...], "cpu": [...]}``."""
    times: list[dict[str, list[float]]] = [{"wall": [], "cpu": []} for _ in cases]
    for number in range(WARMUP_ROUNDS + rounds):
        for case, record in zip(cases, times):
            inputs = case.setup()
            _synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            case.run(inputs)
            _synchronize(device)
            if number >= WARMUP_ROUNDS:
                record["wall"].append(time.perf_counter() - wall)
                record["cpu"].append(time.process_time() - cpu)
        print(f"round {number + 1} of {WARMUP_ROUNDS + rounds}", file=sys.stderr, flush=True)
    return times


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(case: Case, device: torch.device) -> int:
    """Highest memory in use during ``case.run``, above what was in use before it."""
    inputs = case.setup()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        case.run(inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case.run(inputs)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = sorted((e["ts"], e["args"]["Ev Idx"], e["args"]) for e in events if e["name"] == "[memory]")
    if not memory:
        return 0
    first = memory[0][2]
    return max(args["Total Allocated"] for *_, args in memory) - (first["Total Allocated"] - first["Bytes"])


def saved_bytes(case: Case, resident: set[int]) -> int:
    """Bytes of the distinct storages that autograd saves during ``case.run``, those at ``resident`` aside."""
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            storages[storage.data_ptr()] = storage
        return tensor

    inputs = case.setup()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case.run(inputs)
    return sum(storage.nbytes() for storage in storages.values())


def _state(*modules: nn.Module) -> dict[int, int]:
    """Address -> bytes of the parameters and buffers."""
    storages = [x.untyped_storage() for m in modules for x in (*m.parameters(), *m.buffers())]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; the result that ``--json`` writes."""
    device = torch.device(args.device)
    environment = _environment(device)  # before the minutes in which the clone may move on
    torch.manual_seed(0)
    size = dict(channels=args.channels, classes=args.classes)
    student = build_detector(args.detector, depth=args.depth_student, **size).to(device).train()
    teacher = build_detector(args.detector, depth=args.depth_teacher, **size).to(device).eval()
    teacher.requires_grad_(False)
    batch = make_batch(args.images, tuple(args.image_size), args.classes, device)
    cases = make_cases(student, teacher, batch, args.methods)

    times = measure_time(cases, args.steps, device)
    resident = set(_state(student, teacher))
    results = []
    for case, seconds in zip(cases, times):
        memory = {"peak": peak_bytes(case, device), "saved": saved_bytes(case, resident)}
        ratio = {
            clock: statistics.median(x / (s + t) for x, s, t in zip(*(r[clock] for r in (seconds, *times[:2]))))
            for clock in seconds
        }
        results.append(
            {
                "name": case.name,
                "method": case.group,
                "seconds": {clock: statistics.median(values) for clock, values in seconds.items()},
                "ratio": ratio,
                "rounds": seconds,
                "bytes": memory,
            }
        )
    student.zero_grad(set_to_none=True)
    return {
        "command": " ".join(["python tools/benchmark.py", *args.command]),
        "environment": environment,
        "config": {k: v for k, v in vars(args).items() if k not in ("json", "command")},
        "parameter_bytes": {"student": sum(_state(student).values()), "teacher": sum(_state(teacher).values())},
        "cases": results,
    }


def _environment(device: torch.device) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[1]

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD") or "uncommitted"
    changed = git("status", "--porcelain", "--", "d2kd", "configs", "tools/benchmark.py")
    return {
        "commit": commit + ("+changes" if changed and commit != "uncommitted" else ""),
        "d2kd": d2kd.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "load_average": os.getloadavg()[0],
    }


# ---- how it is shown -----------------------------------------------------------------------------------------------


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables: one of the baseline and each method, then what each method adds, then the kernel comparison."""
    cases = result["cases"]
    methods = list(dict.fromkeys(case["method"] for case in cases if case["method"]))
    alone, forward = cases[:2]
    lines = ["| | ms | CPU ms | ratio | CPU ratio | peak MiB | saved MiB |", "|---|--:|--:|--:|--:|--:|--:|"]
    lines += [_row(case) for case in (alone, forward)]
    for method in methods:
        distilled, *parts = (case for case in cases if case["method"] == method)
        lines.append(_row(distilled, f"**distilled step, {method}**"))
        lines += [_row(part, f"&nbsp;&nbsp;{part['name']}") for part in parts]
        rest = [
            distilled["ratio"][clock] - 1 - sum(part["ratio"][clock] for part in parts) for clock in ("wall", "cpu")
        ]
        lines.append(f"| &nbsp;&nbsp;rest | | | {rest[0]:.3f} | {rest[1]:.3f} | | |")

    params = result["parameter_bytes"]
    lines += ["", f"Ratios are to ({STUDENT} + {TEACHER}).", ""]
    lines += ["| beyond student + teacher | time | CPU time | peak | peak, weights included | saved for backward |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for method in methods:
        distilled = next(case for case in cases if case["method"] == method)
        peak, least = distilled["bytes"]["peak"], alone["bytes"]["peak"]
        weights = params["student"] + params["teacher"]
        lines.append(
            f"| {method} | {distilled['ratio']['wall'] - 1:+.1%} | {distilled['ratio']['cpu'] - 1:+.1%} "
            f"| {peak / least - 1:+.1%} | {(peak + weights) / (least + weights) - 1:+.1%} "
            f"| {distilled['bytes']['saved'] / alone['bytes']['saved'] - 1:+.1%} |"
        )
    lines += ["", "| the same kernel, forward and backward | ms | CPU ms | ratio | CPU ratio | peak MiB | saved MiB |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    lines += [_row(case) for case in cases if case["name"] in (ANALYTIC, RESTATED)]
    return "\n".join(lines)


def _row(case: Mapping[str, Any], name: str | None = None) -> str:
    seconds, ratio = case["seconds"], case["ratio"]
    sizes = " | ".join(f"{case['bytes'][kind] / 2**20:.1f}" for kind in ("peak", "saved"))
    return (
        f"| {name or case['name']} | {seconds['wall'] * 1e3:.0f} | {seconds['cpu'] * 1e3:.0f} "
        f"| {ratio['wall']:.3f} | {ratio['cpu']:.3f} | {sizes} |"
    )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Raises SystemExit, with a message, for values that do not fit together."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", choices=FAMILIES, default="retinanet", help="family of both (%(default)s)")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help=f"presets (all: {' '.join(METHODS)})"
    )
    parser.add_argument(
        "--image-size", nargs=2, type=_positive, default=[320, 480], metavar=("H", "W"), help="pixels (320 480)"
    )
    parser.add_argument("--images", type=_positive, default=2, help="images a batch (%(default)s)")
    parser.add_argument("--depth-student", type=int, choices=DEPTHS, default=18, help="of its ResNet (%(default)s)")
    parser.add_argument("--depth-teacher", type=int, choices=DEPTHS, default=50, help="of its ResNet (%(default)s)")
    parser.add_argument("--classes", type=_positive, default=80, help="(%(default)s)")
    parser.add_argument("--channels", type=_positive, default=256, help="of FPN and head of both (%(default)s)")
    parser.add_argument("--steps", type=_positive, default=10, help="rounds on the clock (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is any")
    parser.add_argument("--threads", type=_positive, help="CPU threads of torch (as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round and the machine there")
    args = parser.parse_args(argv)
    if args.detector == "fcos" and args.channels % 32:
        parser.error(f"--channels is {args.channels}: FCOS's head normalises 32 groups, use a multiple of 32")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA device here: use cpu, or a CUDA build of torch")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.command = list(argv)
    return args


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {value}")
    return value


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    result = benchmark(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(to_markdown(result))
    return result


if __name__ == "__main__":
    main()
