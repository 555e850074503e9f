"""The parts of d2kd check --device that are commands of their own: tests, benchmark, training on the digits."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

import d2kd
from d2kd.cli.benchmark_data import title_of
from d2kd.cli.check_device_table import Row
from d2kd.config import load_config
from d2kd.experiments import quoted
from d2kd.experiments.curves import COSTS, final_metrics, read_metrics
from d2kd.experiments.files import read_json

__all__ = ["check_benchmark", "check_digits", "check_tests"]

#: Arguments of d2kd benchmark on a GPU, and on the CPU.
BENCHMARK = "--sizes coco --methods bckd crosskd --rounds 3"
SHORT_BENCHMARK = "--sizes digits --families gfl --methods bckd crosskd --rounds 1"

STUDENT, TEACHER = "digits/gfl_crosskd.py", "digits/gfl_teacher.py"
#: Of a teacher that has to be trained first; its config has 5000.
TEACHER_ITERATIONS = 1500
#: AP that a student who learns reaches after its whole schedule. Without a teacher it is above 60.
LOWEST_AP = 40.0
#: On the CPU: iterations of both, and images of each split.
FEW_ITERATIONS, FEW_IMAGES = 2, 16


def check_tests(device: torch.device, folder: Path) -> list[Row]:
    """The tests marked ``device`` of a clone."""
    kind = "cuda" if device.type == "cuda" else "pretended"
    what = f"tests marked device, on {kind}"
    clone = Path(d2kd.__file__).parents[1]
    if not (clone / "tests/pretended_device.py").is_file():
        return [Row(what=what, found="needs a clone: an installed d2kd has no tests", ok=None)]
    if find_spec("pytest") is None:
        return [Row(what=what, found="pytest is not installed", ok=None)]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "device", "-k", kind, "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "tests"], cwd=clone, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    *_, last = ["", *done.stdout.splitlines()]
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", last)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    found = ", ".join([*counts, *(name.rpartition("/")[2] for name in failed[:3])])
    return [Row(what=what, found=found or "no tests", ok=done.returncode == 0, figures={"failed": failed})]


def check_benchmark(device: torch.device, folder: Path) -> list[Row]:
    """Time and memory of distilled steps."""
    arguments = BENCHMARK if device.type == "cuda" else SHORT_BENCHMARK
    file = folder / "benchmark.json"
    _d2kd("benchmark", *arguments.split(), "--device", device.type, "--json", str(file))
    (pairs,) = read_json(file)["sizes"].values()
    rows = []
    for detector, pair in pairs.items():
        found = ", ".join(
            f"{method} {cost['time_over_student']:.2f}x and {cost['peak_above_student'] / 2**20:.0f} MiB more"
            for method, cost in pair["methods"].items()
        )
        what = f"{title_of(detector)}, {pair['detectors']}, {pair['size']}: a step, over the student's"
        rows.append(Row(what=what, found=found, ok=True, figures=pair))
    return rows


def check_digits(device: torch.device, folder: Path) -> list[Row]:
    """GFL's student distilled by CrossKD at full length; data and teacher are made if they are not there."""
    cut = device.type == "cpu"
    overrides = [f"train.device={device.type}", "train.eval_period=0"]
    if cut:
        sizes = ",".join(f"{split}:{FEW_IMAGES}" for split in ("train", "val", "test"))
        for loader in ("train", "test"):
            node = f"dataloader.{loader}.dataset"
            overrides += [f"{node}.root={quoted(folder / 'digits')}", f"{node}.sizes={{{sizes}}}"]
    config = load_config(STUDENT)
    checkpoint = Path(config.model.teacher.checkpoint)
    rows = []
    if cut or not checkpoint.is_file():
        iterations = FEW_ITERATIONS if cut else TEACHER_ITERATIONS
        rows.append(_train(TEACHER, folder / "teacher", iterations, overrides, None))
        checkpoint = folder / "teacher/model_final.pth"
    overrides.append(f"model.teacher.checkpoint={quoted(checkpoint)}")
    iterations = FEW_ITERATIONS if cut else config.train.max_iter
    rows.append(_train(STUDENT, folder / "student", iterations, overrides, None if cut else LOWEST_AP))
    return rows


def _train(config: str, output: Path, iterations: int, overrides: Sequence[str], lowest: float | None) -> Row:
    length = f"train.max_iter={iterations}"
    _d2kd("train", "--config-file", config, *overrides, length, f"train.output_dir={quoted(output)}")
    file = output / "metrics.json"
    metrics = final_metrics(file, iterations)
    seconds = read_metrics(file, iterations)[iterations][COSTS["cuda"]] / iterations
    ap = metrics.get("bbox/AP", 0.0)  # Detectron2's evaluator returns nothing where nothing is detected
    return Row(
        what=f"{config}, {iterations} iterations",
        found=f"AP {ap:.1f}, {seconds:.3f} s/it",
        limit="" if lowest is None else f"AP {lowest:g}",
        ok=lowest is None or ap >= lowest,
        figures={"metrics": metrics, "seconds_per_iteration": seconds},
    )


def _d2kd(*arguments: str) -> None:
    """
    Raises:
        CalledProcessError: the command failed, and has said why.
    """
    subprocess.run([sys.executable, "-m", "d2kd", *arguments], check=True)
