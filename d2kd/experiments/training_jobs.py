"""The runs of an experiment as jobs: preparation, command, result and progress of each."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from d2kd.experiments.clone import ROOT, git_state
from d2kd.experiments.curves import read_metrics
from d2kd.experiments.files import read_json, write_json, write_text
from d2kd.experiments.jobs import Command, Job, JobError, Progress
from d2kd.experiments.plan import (
    ALONE,
    Experiment,
    Run,
    check_request,
    plan_run,
    plan_runs,
    plan_stretched,
    plan_teacher,
    stretched,
    teacher_is_ready,
)
from d2kd.experiments.results import train_result

__all__ = ["TRAIN", "build_jobs", "train_command"]

#: What trains, as arguments of Python; people type tools/train_net.py, which calls the same.
TRAIN = ("-m", "d2kd.cli.train")


def build_jobs(experiment: Experiment) -> list[Job]:
    """
    All runs as jobs: teachers first, stretched runs after the runs that they follow from.

    Raises:
        JobError: a folder holds a run of another request.
        ValueError: a config is missing.
    """
    jobs: list[Job] = []
    teachers: dict[str, str] = {}  # detector -> name of the job
    # Requests are checked here too: a refusal is better before hours of training than after.
    for detector in experiment.detectors if experiment.distilled else ():
        run, checkpoint = plan_teacher(experiment, detector)
        check_request(run)
        if run.name not in teachers.values():
            prepare, finish = partial(_prepare_teacher, run, checkpoint), partial(str, checkpoint)
            jobs.append(Job(run.name, run.name, prepare, finish, partial(_progress, run)))
        teachers[detector] = run.name
    for run in plan_runs(experiment):
        check_request(run)
        needs = () if run.method == ALONE else (teachers[run.detector],)
        work = partial(_prepare, run), partial(_finish, run), partial(_progress, run)
        jobs.append(Job(run.name, f"{run.detector} {run.method}", *work, needs))
    for seed in experiment.seeds if experiment.stretch else ():
        for detector in experiment.detectors:
            jobs += [_stretched_job(experiment, detector, method, seed) for method in experiment.distilled]
    return jobs


def train_command(run: Run, *python: str) -> list[str]:
    """The command that trains ``run``, or goes on with it; ``python`` is what runs the command line."""
    folder = str(run.folder).replace("'", "\\'")
    return [*python, "--config-file", str(run.config), "--resume", *run.overrides, f"train.output_dir='{folder}'"]


def _prepare(run: Run) -> Command | None:
    wanted = check_request(run)
    if run.result_file.is_file():
        return None
    write_json(run.folder / "request.json", wanted)
    _forget_abandoned(run)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # One thread: a second gains little on images this small, stalls where a core is busy, and would make CPU
    # seconds depend on the number of processes.
    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    return Command(train_command(run, sys.executable, *TRAIN), env, run.folder)


def _forget_abandoned(run: Run) -> None:
    """Drop what an interrupted run has logged after its last checkpoint, from where it goes on."""
    metrics, tag = run.folder / "metrics.json", run.folder / "last_checkpoint"
    name = tag.read_text().strip() if tag.is_file() else "model_-1.pth"
    if not metrics.is_file() or not (at := re.fullmatch(r"model_(-?\d+)\.pth", name)):
        return  # nothing is logged, or all is done
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    write_text(metrics, "".join(line for line in lines if json.loads(line)["iteration"] <= int(at[1])))


def _prepare_teacher(run: Run, checkpoint: str) -> Command | None:
    if teacher_is_ready(checkpoint):
        return None
    if Path(checkpoint).name != "model_final.pth":
        raise JobError(f"model.teacher.checkpoint={checkpoint} does not exist (only model_final.pth is trained)")
    return _prepare(run)


def _finish(run: Run) -> str:
    if not run.result_file.is_file():
        # As it would be typed in the clone: results are read elsewhere.
        command = shlex.join(train_command(run, "python", "tools/train_net.py")).replace(f"{ROOT}{os.sep}", "")
        write_json(run.result_file, {**train_result(run), "command": command, "git": git_state()})
    return f"val AP {read_json(run.result_file)['metrics']['val']['AP']:.1f}"


def _progress(run: Run) -> Progress:
    records = read_metrics(run.folder / "metrics.json", run.max_iter)
    aps = [record["bbox/AP"] for record in records.values() if "bbox/AP" in record]
    return Progress(max(records, default=0), run.max_iter, f"AP {aps[-1]:.1f}" if aps else "")


def _stretched_job(experiment: Experiment, detector: str, method: str, seed: int) -> Job:
    pair = [plan_run(experiment, detector, m, seed) for m in (ALONE, method)]

    def plan() -> Run:
        return plan_stretched(experiment, detector, method, seed)

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
