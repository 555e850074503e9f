"""
Train and compare methods x detectors x seeds on the digits, with paired seeds: runs of one seed start from the
same weights and see the same data in the same order. A teacher is trained once, where the students' configs
expect it. What is finished is not repeated and what was interrupted goes on: run the same command again.

Choose on the val split; the test split is for what is reported at the end. It costs no training: the curves
are always of val, and --split test evaluates the final weights once more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from d2kd.data.digits import prepare_digits
from d2kd.experiments import report
from d2kd.experiments.figures import plot_curves
from d2kd.experiments.jobs import Command, Job, JobError, Progress, run_jobs
from d2kd.experiments.plan import (
    Matrix,
    Run,
    check_request,
    plan_run,
    plan_runs,
    plan_stretched,
    plan_teacher,
    teacher_is_ready,
)
from d2kd.experiments.report import ALONE, stretched
from d2kd.experiments.results import collect, read_json, train_result, write_json

ROOT = Path(__file__).resolve().parents[2]
# What trains, as arguments of Python.
TRAIN = ("-m", "d2kd.cli.train")
# What a comparison sets itself: with another value, runs would not be where, or what, the tables say.
RESERVED = {
    "train.seed": "--seeds",
    "train.max_iter": "--max-iter",
    "train.output_dir": "--output",
    "dataloader.test.dataset.names": "--split",
}
EXAMPLES = """
examples:
  compare.py --detectors fcos --methods alone bckd crosskd --seeds 0 1 2 --processes 2
  compare.py --detectors fcos retinanet --methods alone crosskd --seeds 0 --stretch --split test
  compare.py --methods alone crosskd --output output/lr model.losses.crosskd_cls.weight=2.0 optimizer.lr=1e-3
"""


# Jobs


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # One thread: a second gains little on images this small, stalls where a core is busy, and would make CPU
    # seconds depend on the number of processes.
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}


def train_command(run: Run) -> list[str]:
    """The command that trains ``run``, or goes on with it."""
    folder = str(run.folder).replace("'", "\\'")
    argv = [sys.executable, *TRAIN, "--config-file", str(run.config), "--resume"]
    return [*argv, *run.overrides, f"train.output_dir='{folder}'"]


def shown(argv: Sequence[str]) -> str:
    """A command as it would be typed in the clone: results are read, and their commands run, elsewhere."""
    return shlex.join("python" if arg == sys.executable else arg.replace(f"{ROOT}{os.sep}", "") for arg in argv)


def _prepare(run: Run) -> Command | None:
    wanted = check_request(run)
    if run.result_file.is_file():
        return None
    write_json(run.folder / "request.json", wanted)
    _forget_abandoned(run)
    return Command(train_command(run), _environment(), run.folder)


def _forget_abandoned(run: Run) -> None:
    """Drop what an interrupted run has logged after its last checkpoint, from where it goes on."""
    metrics, tag = run.folder / "metrics.json", run.folder / "last_checkpoint"
    name = tag.read_text().strip() if tag.is_file() else "model_-1.pth"
    if not metrics.is_file() or not (at := re.fullmatch(r"model_(-?\d+)\.pth", name)):
        return  # nothing is logged, or all is done
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    metrics.write_text("".join(line for line in lines if json.loads(line)["iteration"] <= int(at[1])))


def _prepare_teacher(run: Run, checkpoint: str) -> Command | None:
    if teacher_is_ready(checkpoint):
        return None
    if Path(checkpoint).name != "model_final.pth":
        raise JobError(f"model.teacher.checkpoint={checkpoint} does not exist (only model_final.pth is trained)")
    return _prepare(run)


def _finish(run: Run) -> str:
    if not run.result_file.is_file():
        origin = {"command": shown(train_command(run)), "git": git_state()}
        write_json(run.result_file, {**train_result(run), **origin})
    return f"val AP {read_json(run.result_file)['metrics']['val']['AP']:.1f}"


def _progress(run: Run) -> Progress:
    records = report.read_metrics(run.folder / "metrics.json", run.max_iter)
    aps = [record["bbox/AP"] for record in records.values() if "bbox/AP" in record]
    return Progress(max(records, default=0), run.max_iter, f"AP {aps[-1]:.1f}" if aps else "")


def build_jobs(matrix: Matrix) -> list[Job]:
    """
    All trainings as jobs: teachers first, stretched runs after the runs that they follow from.

    Raises:
        JobError: a folder holds a run of another request.
        ValueError: a config is missing.
    """
    jobs, teachers = [], {}
    # Requests are checked here too: a refusal is better before hours of training than after.
    for detector in matrix.detectors if matrix.distilled else ():
        run, checkpoint = plan_teacher(matrix, detector)
        check_request(run)
        first, teachers[detector] = run.name not in teachers.values(), run.name
        if not first:
            continue
        prepare = partial(_prepare_teacher, run, checkpoint)
        jobs.append(Job(run.name, run.name, prepare, partial(str, checkpoint), partial(_progress, run)))
    for run in plan_runs(matrix):
        check_request(run)
        needs = () if run.method == ALONE else (teachers[run.detector],)
        work = partial(_prepare, run), partial(_finish, run), partial(_progress, run)
        jobs.append(Job(run.name, f"{run.detector} {run.method}", *work, needs))
    for seed in matrix.seeds if matrix.stretch else ():
        for detector in matrix.detectors:
            jobs += [_stretched_job(matrix, detector, method, seed) for method in matrix.distilled]
    return jobs


def _stretched_job(matrix: Matrix, detector: str, method: str, seed: int) -> Job:
    plan = partial(plan_stretched, matrix, detector, method, seed)
    pair = [plan_run(matrix, detector, m, seed) for m in (ALONE, method)]

    def progress() -> Progress:
        if all(run.result_file.is_file() for run in pair):
            return _progress(plan())
        return Progress(0, round(1.6 * pair[0].max_iter))  # about what distillation costs, for the ETA only

    return Job(
        f"{detector} {stretched(method)} seed {seed}",
        f"{detector} {ALONE}",
        lambda: _prepare(plan()),
        lambda: _finish(plan()),
        progress,
        tuple(run.name for run in pair),
    )


# Report


@cache
def git_state() -> dict[str, Any] | None:
    """Commit of the clone and whether files differ from it; None where this is no clone."""

    def git(*argv: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *argv], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return commit and {"commit": commit, "dirty": git("status", "--porcelain") != ""}


def write_report(matrix: Matrix, command: str) -> str:
    """Write ``results.json``, ``results.md`` and ``curves.png`` to the output folder; returns the table."""
    results, left_out = collect(matrix)
    if not results:
        return "No run is finished, so there is nothing to report."
    rows = report.summarize(results)
    table = report.to_markdown(rows)
    notes = [f"AP on digits_{matrix.split}, of the weights after the last iteration.", *report.notes(results)]
    if left_out:
        notes.append(f"{left_out} finished runs with other overrides or configs lie here too and are left out.")
    text = f"{table}\n" + "\n".join(f"- {note}" for note in notes) + f"\n\nMade by `{command}`.\n"
    (matrix.output / "results.md").write_text(text)
    write_json(matrix.output / "results.json", {"command": command, "runs": results})
    plot_curves(matrix.output / "curves.png", results)
    return text


# Command line


def enter_clone() -> None:
    """
    The configs' relative paths (teachers, data) are the clone's, wherever the command was typed. And evaluations
    here take one thread: a second gains nothing on images this small, and costs much where a core is busy.
    """
    torch.set_num_threads(1)
    if "DETECTRON2_DATASETS" in os.environ:
        os.environ["DETECTRON2_DATASETS"] = os.path.abspath(os.path.expanduser(os.environ["DETECTRON2_DATASETS"]))
    os.chdir(ROOT)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", default=["fcos"], help="default: fcos")
    parser.add_argument("--methods", nargs="+", default=[ALONE, "bckd", "crosskd"], help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, one thread each")
    parser.add_argument("--output", type=Path, help="default: output/compare in the clone")
    parser.add_argument("--max-iter", type=int, help="iterations of the students (default: their configs')")
    parser.add_argument("--split", choices=["val", "test"], default="val", help="reported on; default: val")
    parser.add_argument(
        "--stretch", action="store_true", help="add the student alone, at the CPU cost of each distilled run"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides for every student")
    return parser


def parse_matrix(argv: Sequence[str]) -> tuple[Matrix, int]:
    """The matrix and the number of processes that a command line asks for."""
    parser = argument_parser()
    # Taken out first: "--seeds 0 1 key=value" is what people type, and argparse reads as three seeds.
    overrides = tuple(arg for arg in argv if re.match(r"[A-Za-z_][\w.]*=", arg))
    args = parser.parse_args([arg for arg in argv if arg not in overrides])
    if args.overrides:
        parser.error(f"{args.overrides[0]!r} is no key=value override")
    for override in overrides:
        if (key := override.split("=")[0]) in RESERVED:
            parser.error(f"{key} is set by this tool: use {RESERVED[key]}")
    if args.stretch and (ALONE not in args.methods or set(args.methods) == {ALONE}):
        parser.error(f"--stretch needs {ALONE!r} and a distilled method among --methods")
    if args.processes < 1 or (args.max_iter is not None and args.max_iter < 1):
        parser.error("--processes and --max-iter must be at least 1")
    matrix = Matrix(
        configs=ROOT / "configs" / "digits",
        output=(args.output or ROOT / "output" / "compare").absolute(),
        detectors=tuple(dict.fromkeys(args.detectors)),
        methods=tuple(dict.fromkeys(args.methods)),
        seeds=tuple(dict.fromkeys(args.seeds)),
        overrides=overrides,
        max_iter=args.max_iter,
        stretch=args.stretch,
        split=args.split,
    )
    return matrix, args.processes


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    matrix, processes = parse_matrix(argv)
    command = shlex.join(["python", "tools/compare.py", *argv])
    enter_clone()
    try:
        jobs = build_jobs(matrix)
        prepare_digits()  # once, rather than in each of the first trainings
        failed = run_jobs(jobs, processes)
    except (ValueError, JobError) as e:
        sys.exit(f"compare.py: {e}")
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on where this one stopped.", file=sys.stderr)
        return 130
    print(f"\n{write_report(matrix, command)}\nWritten to {matrix.output}: results.md, results.json, curves.png")
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
