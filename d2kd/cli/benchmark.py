"""
Time and memory of a distilled training step and of its parts, against what cannot be avoided: the student's own step
and the teacher's forward pass, measured in the same run. Random weights and images; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import d2kd
from d2kd.cli import run_command
from d2kd.cli.benchmark_cases import (
    ANALYTIC,
    RESTATED,
    STUDENT,
    TEACHER,
    Case,
    build_detector,
    make_batch,
    make_cases,
    methods_for,
)
from d2kd.experiments import git_state, write_json
from d2kd.methods import METHODS

COMMAND = "d2kd benchmark"
FAMILIES = {"retinanet": "RetinaNet", "fcos": "FCOS", "gfl": "GFL", "atss": "ATSS"}
DEPTHS = (18, 34, 50, 101, 152)
WARMUP_ROUNDS = 1

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
  $ OMP_NUM_THREADS=1 d2kd benchmark --detector fcos --methods bckd crosskd --device cpu --json out.json
"""


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
    batch = make_batch(args.images, tuple(args.image_size), args.classes, args.objects, device)
    methods = args.methods if args.methods is not None else methods_for(student, teacher)
    cases = make_cases(student, teacher, batch, methods)

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
        "command": " ".join([COMMAND, *args.command]),
        "environment": environment,
        "config": {k: v for k, v in vars(args).items() if k not in ("json", "command")},
        "parameter_bytes": {"student": sum(_state(student).values()), "teacher": sum(_state(teacher).values())},
        "cases": results,
    }


def _environment(device: torch.device) -> dict[str, Any]:
    git = git_state(Path(d2kd.__file__).parents[1], "d2kd", "configs")
    return {
        "commit": git["commit"] + ("+changes" if git["dirty"] else "") if git else "uncommitted",
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
        prog=COMMAND, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", choices=FAMILIES, default="retinanet", help="family of both (%(default)s)")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, help=f"presets, of {' '.join(METHODS)} (those that fit the detector)"
    )
    parser.add_argument(
        "--image-size", nargs=2, type=_positive, default=[320, 480], metavar=("H", "W"), help="pixels (320 480)"
    )
    parser.add_argument("--objects", type=_positive, default=8, help="in each image (%(default)s)")
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
    if args.detector != "retinanet" and args.channels % 32:
        parser.error(f"--channels is {args.channels}: this head normalises 32 groups, use a multiple of 32")
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


def run(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    result = benchmark(args)
    if args.json:
        write_json(args.json, result)
    print(to_markdown(result))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, parse_args(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
