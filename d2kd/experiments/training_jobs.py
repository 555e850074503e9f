"""The runs of an experiment as jobs: preparation, command, result and progress of each."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from d2kd.config import ALONE, CONFIG, config_path
from d2kd.engine import check_evaluator, locked
from d2kd.engine.metrics_file import cut_metrics
from d2kd.experiments.curves import read_metrics
from d2kd.experiments.datasets import load_data, tested_on
from d2kd.experiments.files import read_json, write_json
from d2kd.experiments.git import git_state
from d2kd.experiments.jobs import Command, Job, JobError, Progress
from d2kd.experiments.metrics import metric_text
from d2kd.experiments.plan import (
    Experiment,
    Run,
    config_label,
    plan_run,
    plan_runs,
    plan_stretched,
    quoted,
    stretched,
)
from d2kd.experiments.requests import check_request, request_file
from d2kd.experiments.results import train_result
from d2kd.experiments.teachers import plan_teacher, teacher_is_ready

__all__ = ["TRAIN", "build_jobs", "environments", "train_command"]

#: What trains, as arguments of Python; people type ``d2kd train``, which calls the same.
TRAIN = ("-m", "d2kd", "train")


def build_jobs(experiment: Experiment) -> list[Job]:
    """
    All runs as jobs: teachers first, stretched runs after the runs that they follow from.

    Raises:
        JobError: a folder holds a run of another request.
        ValueError: a config or a method cannot be used.
        FileNotFoundError: there is no such config.
    """
    jobs: list[Job] = []
    teachers: dict[str, tuple[str, ...]] = {}  # checkpoint -> name of the job that trains it, if any
    needs: dict[str, tuple[str, ...]] = {}  # config -> the same
    # All that can be refused is refused here: that is better before hours of training than after.
    runs = plan_runs(experiment)
    _ = experiment.metric  # of configs with several there is no table
    _check_data(experiment)
    needing = {run.config for run in runs if run.method != ALONE and not is_finished(run)}
    for config in experiment.configs:
        if config not in needing:  # a teacher that is gone is not trained again for what is done
            continue
        checkpoint, run = plan_teacher(experiment, config)
        if run is not None:
            asked = check_request(run)
            if checkpoint not in teachers:
                prepare, finish = partial(_prepare_teacher, run, asked, checkpoint), partial(str, checkpoint)
                jobs.append(Job(run.name, run.name, prepare, finish, partial(_progress, run)))
                teachers[checkpoint] = (run.name,)
        needs[config] = teachers.get(checkpoint, ())
    for run in runs:
        work = partial(_prepare, run, check_request(run)), partial(_finish, run), partial(_progress, run)
        kind = f"{run.config} {run.method}"
        jobs.append(Job(run.name, kind, *work, () if run.method == ALONE else needs.get(run.config, ())))
    for seed in experiment.seeds if experiment.stretch else ():
        for config in experiment.configs:
            jobs += [_stretched_job(experiment, config, method, seed) for method in experiment.distilled]
    return jobs


def _check_data(experiment: Experiment) -> None:
    """
    Load the data: of training, of the evaluations, and of the report. Data that is made at its first use is made here,
    once.

    Raises:
        ValueError: a dataset is not registered, an evaluator is of another one, or ``report`` sets what the config
            lacks.
    """
    for config in experiment.configs:
        run = plan_run(experiment, config, ALONE, experiment.seeds[0])
        cfg = run.load_config()
        for key in (override.removeprefix("+").split("=")[0] for override in experiment.report):
            if OmegaConf.select(cfg, key.rpartition(".")[0], default=None) is None:
                raise ValueError(f"--report sets {key}, but {config} has nothing of that name.")
        load_data(cfg, config, "train", "test")
        check_evaluator(cfg)
        if experiment.report:
            reported = run.load_config(*experiment.report)
            load_data(reported, config, "test")
            check_evaluator(reported)


def environments(device: str, processes: int) -> list[dict[str, str]]:
    """
    What each of the trainings that run side by side has in its environment: on GPUs, one of its own.

    Raises:
        ValueError: more ``processes`` than GPUs.
    """
    if device == "cpu":
        return [{}] * processes
    count = torch.cuda.device_count()
    if processes > count:
        raise ValueError(f"--processes is {processes}, but {count} GPUs train one run at a time each: lower it.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else map(str, range(count))
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in islice(gpus, processes)]


def train_command(run: Run, *python: str) -> list[str]:
    """The command that trains ``run``, or goes on with it; ``python`` is what runs the command line."""
    method = () if run.losses == CONFIG else ("--method", run.losses)
    overrides = (*run.overrides, f"train.output_dir={quoted(run.folder)}")
    return [*python, "--config-file", run.config, *method, "--resume", *overrides]


def _unchanged_request(run: Run, asked: Mapping[str, Any]) -> dict[str, Any]:
    """
    The run's request, of the config that ``asked`` is of.

    Raises:
        JobError: the config has changed, or cannot be read any more; or the run's folder holds another run.
    """
    try:
        wanted = check_request(run)
    except JobError:
        raise
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from error
    if wanted["config_sha256"] != asked["config_sha256"]:
        raise JobError(
            f"what {run.config} says has changed since this comparison began: undo that, or begin the rest again"
        )
    return wanted


def _prepare(run: Run, asked: Mapping[str, Any]) -> Command | None:
    """
    Args:
        asked: the run's request when the comparison began.

    Raises:
        JobError: its config has changed, its folder holds a run of another request, or a training is under way there:
            that of another comparison, or of one that was killed and left it behind.
    """
    wanted = _unchanged_request(run, asked)
    if is_finished(run):
        return None
    file = request_file(run)
    config = Path(config_path(run.config)).resolve()
    git = git_state(config.parent, ":/*.py", config.name)  # outputs beside them change no run
    try:
        with locked(str(run.folder)):  # the training holds it next; what another one logs is not to be cut
            goes_on = file.is_file() and (run.folder / "last_checkpoint").is_file()
            write_json(file, {**wanted, "git": git, **(read_json(file) if goes_on else {})})
            _forget_abandoned(run)
    except BlockingIOError as error:
        raise JobError(str(error).rstrip(".")) from error
    # One thread: a second gains little on small images, stalls where a core is busy, and would make CPU seconds depend
    # on the number of processes. What this process imports is what the training imports.
    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return Command(train_command(run, sys.executable, *TRAIN), env, run.folder)


def is_finished(run: Run) -> bool:
    """Whether the run has its result, and for the metric that its config names now."""
    if not run.result_file.is_file():
        return False
    return read_json(run.result_file)["metric"] == run.metric


def _forget_abandoned(run: Run) -> None:
    """Drop what an interrupted run has logged after its last checkpoint, from where it goes on."""
    tag = run.folder / "last_checkpoint"
    if tag.is_file() and (at := re.fullmatch(r"model_(\d+)\.pth", tag.read_text(errors="replace").strip())):
        cut_metrics(run.folder / "metrics.json", int(at[1]) + 1, evaluated_again=False)


def _prepare_teacher(run: Run, asked: Mapping[str, Any], checkpoint: str) -> Command | None:
    if teacher_is_ready(checkpoint):
        return None
    return _prepare(run, asked)


def _finish(run: Run) -> str:
    if not is_finished(run):
        _unchanged_request(run, read_json(request_file(run)))
        command = shlex.join(train_command(run, "d2kd", "train"))
        write_json(run.result_file, {**train_result(run), "command": command})
    metrics = read_json(run.result_file)["metrics"]
    return f"{metric_text(run.metric, metrics[run.metric])} on {tested_on(run.load_config())}"


def _progress(run: Run) -> Progress:
    records = read_metrics(run.folder / "metrics.json", run.max_iter)
    values = [record[run.metric] for record in records.values() if run.metric in record]
    return Progress(max(records, default=0), run.max_iter, metric_text(run.metric, values[-1]) if values else "")


def _stretched_job(experiment: Experiment, config: str, method: str, seed: int) -> Job:
    pair = [plan_run(experiment, config, m, seed) for m in (ALONE, method)]
    asked = [check_request(run) for run in pair]

    @cache
    def plan() -> Run:
        return plan_stretched(experiment, *pair)

    def prepare() -> Command | None:
        for run, request in zip(pair, asked):
            _unchanged_request(run, request)
        return _prepare(plan(), check_request(plan()))

    def progress() -> Progress:
        if all(is_finished(run) for run in pair):
            return _progress(plan())
        return Progress(0, round(1.6 * pair[0].max_iter))  # about what distillation costs, for the ETA only

    return Job(
        f"{config_label(config)} {stretched(method)} seed {seed}",
        f"{config} {ALONE}",
        prepare,
        lambda: _finish(plan()),
        progress,
        tuple(run.name for run in pair),
    )
