"""
Time and memory of a distilled training step, for all methods and detector families, against what cannot be avoided.
Random weights and images; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2
import torch

import d2kd
from d2kd.cli import Parser, check_file, run_command
from d2kd.cli.benchmark_cases import ENGINES, STUDENT, TEACHER, engine_case, make_cases, run_detector
from d2kd.cli.benchmark_data import (
    FAMILIES,
    SIZES,
    Size,
    build_pair,
    detectors_of,
    make_batch,
    methods_of,
    title_of,
)
from d2kd.cli.benchmark_kernels import CHECKPOINTED, KERNELS, SHIPPED, TEXTBOOK, Data, kernel_cases
from d2kd.cli.benchmark_measure import Measured, measure, ratio
from d2kd.cli.benchmark_ranks import measure_ranks
from d2kd.cli.benchmark_tables import to_markdown
from d2kd.experiments import git_state, write_json
from d2kd.methods import METHODS

COMMAND = "d2kd benchmark"

#: Where --growth starts, and where each of these grows to.
GROWTH_SIZE = Size(images=1, canvas=(160, 240), objects=8, depths=(18, 50))
GROWTH: Mapping[str, Sequence[Any]] = {
    "images": (4,),
    "canvas": ((320, 480),),
    "classes": (20, 1203),
    "objects": (50, 200),
}
GROWTH_METHODS = {"retinanet": ("bckd", "crosskd"), "gfl": ("ld", "tid")}
KERNEL_SIZE = Size(images=2, canvas=(800, 1088), objects=8)
KERNEL_REPEATS = 2

EPILOG = f"""
sizes
{chr(10).join(f"  {name:8}{size.detectors}, {size}" for name, size in SIZES.items())}
  For coco take a GPU, or an hour for each family.

what is measured
  {STUDENT:16}  the plain detector: detection losses, forward and backward, without the optimizer's step
  {TEACHER:16}  preprocessing, backbone and head under no_grad, in fp32 as Detectron2 runs them
  crossed blocks    the teacher's last blocks and predictors on the student's taps, forward and backward to these
  floor             these three (the third for crossed losses alone): what a distilled step cannot do without
  step              DistilledDetector with the method's preset, forward and backward
  region, loss      parts of the step on their own, decoding of boxes included; a loss forward and backward to the
                    predictions or features that it reads
  gradient shares, examination of the teacher
                    of crosskd on the digits: what looks after a run, every 100 iterations and once

how
  Every round runs all of a detector's cases one after the other, so that other work on the machine falls on all alike.
  Digits have {SIZES["digits"].repeats} times --rounds, kernels {KERNEL_REPEATS} times.
  A time is the median over the rounds, a ratio the median of each round's own. On a CPU seconds are those of the
  processor (use one thread: --threads 1), on a GPU those of the wall, synchronised.
  Peak memory is measured first, in a pass that warms up, above what was in use before: parameters, their gradients and
  the batch. On CUDA it is torch.cuda.max_memory_allocated, on a CPU the highest sum of the profiler's memory events
  (what oneDNN takes past torch's allocator is not in it). A set of class-logit maps is what the student predicts, fp32.
  --ranks shares the digits' batch among processes, on a CPU by gloo, and compares terms and gradients with those of the
  first number. Seconds are those of the main rank. The backbone's batch norms keep their statistics: trained, they
  would be those of a rank's images.

example
  $ OMP_NUM_THREADS=1 d2kd benchmark --families gfl fcos --methods bckd crosskd --sizes small --device cpu
"""


def measure_pair(
    detector: str, size: Size, methods: Sequence[str], rounds: int, device: torch.device
) -> dict[str, Any]:
    """What all cases of a student and a teacher take, and what the tables show of it."""
    print(f"{title_of(detector)}, {size} ", end="", file=sys.stderr, flush=True)
    student, teacher = build_pair(detector, size, device)
    batch = make_batch(size, device)
    watched = "crosskd" if size == SIZES["digits"] else None
    cases, compositions = make_cases(student, teacher, batch, methods, watched=watched)
    measured = measure(cases, rounds, device, student.parameters())
    _, (logits, *_) = run_detector(student, batch)
    costs = {
        method: {
            "time_over_student": ratio(measured, [composition.step], [STUDENT]),
            "time_over_floor": ratio(measured, [composition.step], composition.floor),
            "peak_above_student": measured[composition.step]["peak_bytes"] - measured[STUDENT]["peak_bytes"],
            "floor": composition.floor,
            "regions_and_losses": sum(_seconds(measured[part]) for part in composition.parts),
        }
        for method, composition in compositions.items()
    }
    engines = {name: engine_case(name) for name in ENGINES}
    hidden = {*(composition.step for composition in compositions.values()), *engines.values()}
    return {
        "detectors": size.detectors,
        "size": str(size),
        "logit_bytes": sum(x.nbytes for x in logits),
        "methods": costs,
        "parts": {
            name: {"seconds": _seconds(case), "of_student_and_teacher": ratio(measured, [name], [STUDENT, TEACHER])}
            for name, case in measured.items()
            if name not in hidden
        },
        "engines": {name: {"time_over_plain": ratio(measured, [case], [TEACHER])} for name, case in engines.items()},
        "cases": measured,
    }


def measure_growth(detector: str, methods: Sequence[str], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """:func:`measure_pair` at :data:`GROWTH_SIZE` and at each of the sizes that it grows to."""
    grown = [replace(GROWTH_SIZE, **{field: value}) for field, values in GROWTH.items() for value in values]
    return [measure_pair(detector, size, methods, rounds, device) for size in (GROWTH_SIZE, *grown)]


def measure_kernel(name: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """A kernel of :data:`KERNELS`, and its ratios to the formula in plain torch."""
    print(f"kernel: {name} ", end="", file=sys.stderr, flush=True)
    torch.manual_seed(0)
    cases = kernel_cases(KERNELS[name](Data(KERNEL_SIZE, device)))
    measured = measure(cases, rounds, device)
    shipped = measured[SHIPPED]
    ratios = {
        form: {
            "time": ratio(measured, [SHIPPED], [form]),
            "peak": shipped["peak_bytes"] / measured[form]["peak_bytes"],
        }
        for form in (TEXTBOOK, CHECKPOINTED)
    }
    return {"seconds": _seconds(shipped), "peak_bytes": shipped["peak_bytes"], **ratios, "cases": measured}


def _seconds(case: Measured) -> float:
    return statistics.median(case["seconds"])


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure; the result that ``--json`` writes."""
    device = torch.device(args.device)
    result: dict[str, Any] = {
        "command": " ".join([COMMAND, *args.command]),
        "environment": environment(device),  # before the minutes in which the clone may move on
        "warnings": warnings_of(args, device),
        "sizes": {},
        "growth": {},
        "kernels": {},
        "ranks": {},
    }
    for warning in result["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    for name in args.sizes:
        size = SIZES[name]
        rounds = args.rounds * size.repeats
        result["sizes"][name] = {
            detector: measure_pair(detector, size, methods, rounds, device)
            for detector, methods in args.measured[name].items()
        }
    for family, methods in GROWTH_METHODS.items():
        if args.growth and family in args.families:
            result["growth"][family] = measure_growth(family, methods, args.rounds, device)
    if args.kernels:
        result["kernels"] = {name: measure_kernel(name, KERNEL_REPEATS * args.rounds, device) for name in KERNELS}
    if args.ranks:
        size = SIZES["digits"]
        rounds = args.rounds * size.repeats
        result["ranks"] = {
            detector: {"size": str(size), "methods": measure_ranks(detector, size, methods, args.ranks, rounds, device)}
            for detector, methods in args.measured["digits"].items()
        }
    return result


def warnings_of(args: argparse.Namespace, device: torch.device) -> list[str]:
    """What makes the figures worse than they could be."""
    load, cores, threads = os.getloadavg()[0], os.cpu_count() or 1, torch.get_num_threads()
    if device.type != "cpu" or args.threads or "OMP_NUM_THREADS" in os.environ or load + threads < cores + 0.5:
        return []
    return [
        f"torch takes {threads} threads on {cores} cores whose load is {load:.1f}: threads that wait for a core spoil "
        "the times. Set --threads 1."
    ]


def environment(device: torch.device) -> dict[str, Any]:
    """The code and the machine."""
    git = git_state(Path(d2kd.__file__).parents[1], "d2kd", "configs")
    cpu = f"CPU, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "commit": git["commit"] + ("+changes" if git["dirty"] else "") if git else "uncommitted",
        "d2kd": d2kd.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Raises SystemExit, with a message, for values that do not fit together."""
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EPILOG)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="of detectors (all)")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help=f"of {' '.join(METHODS)} (those a detector has)")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=["digits", "small"], help="(digits small)")
    parser.add_argument("--growth", action="store_true", help="also by images, their area, classes and objects")
    parser.add_argument("--kernels", action="store_true", help="also each kernel against its formula in plain torch")
    parser.add_argument("--ranks", nargs="+", type=_positive, metavar="N", help="also digits shared by N processes")
    parser.add_argument("--rounds", type=_positive, default=3, help="of the slowest; others have more (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA if there is any")
    parser.add_argument("--threads", type=_positive, help="CPU threads of torch (as torch chooses)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round and the machine there")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA device here: use cpu, or a CUDA build of torch")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.ranks:
        _check_ranks(parser, args)
    args.measured = {name: {} for name in dict.fromkeys([*args.sizes, *(["digits"] if args.ranks else [])])}
    for family in args.families:
        known: set[str] = set()
        for name in args.measured:
            for detector in detectors_of(family, SIZES[name]):
                fitting = methods_of(detector)
                known.update(fitting)
                args.measured[name][detector] = [x for x in fitting if args.methods is None or x in args.methods]
        missing = [method for method in args.methods or () if method not in known]
        if missing and args.measured:
            has = ", ".join(method for method in METHODS if method in known)
            parser.error(f"{FAMILIES[family]} has no {', '.join(missing)}, it has {has}: name others, or --families")
    args.command = list(argv)
    return args


def _check_ranks(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    images, gpus = SIZES["digits"].images, torch.cuda.device_count()
    odd = [count for count in args.ranks if images % count]
    if odd:
        parser.error(f"--ranks {odd[0]}, but the digits' batch of {images} images is shared evenly: use a divisor")
    if args.device == "cpu" and gpus:
        parser.error("--ranks on the CPU needs a machine without visible GPUs: set CUDA_VISIBLE_DEVICES to nothing")
    if args.device == "cuda" and max(args.ranks) > gpus:
        parser.error(f"--ranks {max(args.ranks)}, but this machine has {gpus} GPUs")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, found {text}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: the file to write is a folder.
    """
    check_file("--json", args.json)
    # Detectron2's logger warns of losses in one model that lose accuracy together, which is not the question here.
    logger = logging.getLogger("detectron2")
    level = logger.level
    logger.setLevel(logging.ERROR)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        result = benchmark(args)
    finally:
        logger.setLevel(level)
    if args.json:
        write_json(args.json, result)
    print(to_markdown(result))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, parse_args(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    raise SystemExit(main())
