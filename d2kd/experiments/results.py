"""Results of finished runs: metrics, cost, curve, and what they were made with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import DictConfig
from torch import nn

from d2kd.checkpoint import load_strictly
from d2kd.config import ALONE
from d2kd.engine import EMA_FILE, EMA_PREFIX, evaluate, resolve_device, teacher_predictor
from d2kd.experiments.curves import COSTS, CurvePoint, curve, final_metrics, read_metrics
from d2kd.experiments.files import read_json, write_json
from d2kd.experiments.jobs import JobError
from d2kd.experiments.plan import (
    TEACHER,
    Experiment,
    Run,
    config_label,
    plan_run,
    plan_teacher,
    stretched_for,
)
from d2kd.experiments.requests import check_request, request, sha256

__all__ = [
    "collect",
    "evaluate_student",
    "evaluate_teacher",
    "load_student",
    "load_teacher",
    "train_result",
    "versions",
]

Metrics = dict[str, float | None]  # "task/metric" -> value, None for NaN


def load_student(cfg: DictConfig, checkpoint: str | Path) -> nn.Module:
    """
    The config's model with a checkpoint's weights, in eval mode, on ``train.device``.

    Raises:
        MisfitError: the checkpoint is not of that model.
        FileNotFoundError: there is no such file.
    """
    model = instantiate(cfg.model).to(resolve_device(cfg.train.device))
    refusal, absent = f"{checkpoint} is no checkpoint of its run's config", f"There is no checkpoint {checkpoint}."
    load_strictly(model, str(checkpoint), refusal=refusal, absent=absent)
    return model.eval()


def load_teacher(cfg: DictConfig) -> tuple[Callable[[Sequence[Mapping]], list[dict]], int]:
    """
    The loaded teacher of a config with losses, as it was trained whatever its engine, to be called with batches of the
    student's; and its parameters.
    """
    node = deepcopy(cfg.model)
    node.teacher.precision, node.teacher.engine = "fp32", "eager"
    model = instantiate(node)
    model.teacher.load(resolve_device(cfg.train.device), model.pixel_mean.dtype)
    return teacher_predictor(model), sum(p.numel() for p in model.teacher.detector.parameters())


def evaluate_student(cfg: DictConfig, checkpoint: str | Path) -> Metrics:
    """What ``cfg.dataloader.evaluator`` returns of a checkpoint, on ``cfg.dataloader.test``."""
    return _evaluate(cfg, load_student(cfg, checkpoint))


def _evaluate_run(run: Run, overrides: Sequence[str] = ()) -> Metrics:
    """The same of a run's last weights and, with ``train.ema``, of their average."""
    cfg = run.load_config(*overrides)
    metrics = evaluate_student(cfg, run.folder / "model_final.pth")
    averaged = evaluate_student(cfg, run.folder / EMA_FILE) if cfg.train.get("ema") else {}
    return metrics | {f"{EMA_PREFIX}{name}": value for name, value in averaged.items()}


def evaluate_teacher(cfg: DictConfig) -> Metrics:
    """
    The same of the teacher, on the student's data and with its evaluator. With ``train.ema`` also under the names of
    averaged weights, with which the student's are compared.
    """
    metrics = _evaluate(cfg, load_teacher(cfg)[0])
    return metrics | {f"{EMA_PREFIX}{name}": value for name, value in metrics.items() if cfg.train.get("ema")}


def _evaluate(cfg: DictConfig, model: nn.Module | Callable) -> Metrics:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what the table says
        loader = instantiate(cfg.dataloader.test)  # registers the data that the evaluator needs
        return _without_nan(flatten_results_dict(evaluate(model, loader, instantiate(cfg.dataloader.evaluator))))


def _without_nan(values: Mapping[str, float]) -> Metrics:
    return {key: None if math.isnan(value) else float(value) for key, value in values.items()}


def _checked(metrics: Metrics, metric: str) -> Metrics:
    """
    The metrics.

    Raises:
        JobError: ``metric`` is none of them.
    """
    if metric not in metrics:
        found = ", ".join(metrics) or "nothing"
        raise JobError(f"train.best_metric is {metric!r}, but the evaluator returns {found}: set it to one of these")
    return metrics


def train_result(run: Run) -> dict[str, Any]:
    """
    The result of a finished run: metrics, cost, curve, its request and the versions of libraries.

    Raises:
        JobError: the evaluator does not return ``train.best_metric``.
    """
    logged, metric = run.folder / "metrics.json", run.metric
    costs = _costs(logged, run.max_iter, run.device)
    points = curve(read_metrics(logged, run.max_iter), metric, COSTS[run.device])
    metrics = _without_nan(final_metrics(logged, run.max_iter))
    if not metrics:  # killed between its last checkpoint and its last evaluation
        metrics = _checked(_evaluate_run(run), metric)
        value = metrics[metric]
        points.append(CurvePoint(run.max_iter, costs["cost_seconds"], math.nan if value is None else value))
    return {
        "config": config_label(run.config),
        "config_file": run.config,
        "method": run.method,
        "seed": run.seed,
        "max_iter": run.max_iter,
        "metric": metric,
        "metrics": _checked(metrics, metric),
        "reported": {},
        "parameters": _parameters(instantiate(run.load_config().model)),
        **costs,
        "curve": points,
        "request": request(run),
        "versions": versions(),
    }


def _costs(logged: Path | None, max_iter: int, device: str) -> dict[str, Any]:
    """Seconds per iteration (of the wall clock), seconds of the whole training, and which: "cpu" or "cuda"."""
    records = read_metrics(logged, max_iter).values() if logged else ()
    last: Mapping[str, float] = next((record for record in reversed([*records]) if COSTS[device] in record), {})
    wall = last.get("cost/wall_seconds")
    return {
        "seconds_per_iteration": None if wall is None else wall / max_iter,
        "cost_seconds": last.get(COSTS[device]),
        "device": device,
    }


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("distillation."))


def collect(experiment: Experiment) -> tuple[list[dict[str, Any]], int]:
    """
    Results of the experiment's teachers and of all finished runs in its output folder that were made with its
    overrides and the configs as they are now, whichever configs, methods and seeds it names.

    Returns:
        (results, with what is reported as ``values``; number of other runs left out)

    Raises:
        JobError: the evaluator does not return the metric.
    """
    results, left_out = [], 0
    kind = experiment.metric, experiment.device
    for file in sorted(experiment.output.glob("*/*/seed*/result.json")):
        result = read_json(file)
        run = _run_of(experiment, result)
        if run is None or (result["metric"], result["device"]) != kind:
            left_out += 1
            continue
        results.append(_reported(result, file, experiment, partial(_evaluate_run, run, experiment.report)))
    taught = {r["config"]: r for r in results if r["method"] != ALONE and not stretched_for(r["method"])}
    results += filter(None, (_teacher_result(experiment, result) for result in taught.values()))
    rank = {TEACHER: 0, ALONE: 1}

    def place(result: dict[str, Any]) -> tuple[str, int, str, int]:
        method = result["method"]
        return result["config"], rank.get(method, 2 if stretched_for(method) else 3), method, result["seed"]

    return sorted(results, key=place), left_out


def _run_of(experiment: Experiment, result: Mapping[str, Any]) -> Run | None:
    """The run of a result; None for another request than the experiment's, or a config that no longer exists."""
    max_iter = result["max_iter"] if stretched_for(result["method"]) else None
    try:
        run = plan_run(experiment, result["config_file"], result["method"], result["seed"], max_iter)
        check_request(run)
    except (JobError, ValueError, FileNotFoundError):
        return None
    return run


def _teacher_result(experiment: Experiment, taught: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    The metrics of a distilled student's teacher on the student's data, and the cost of its training where that is
    known. None for a teacher of other classes, whose detections the student's evaluator cannot read.
    """
    config = taught["config_file"]
    checkpoint, run = plan_teacher(experiment, config)
    student = plan_run(experiment, config, taught["method"], taught["seed"])
    cfg = student.load_config()
    if cfg.model.teacher.class_map is not None:
        return None
    file = experiment.output / taught["config"] / TEACHER / "result.json"
    made_of = {"checkpoint": checkpoint, "sha256": sha256(checkpoint), "metric": student.metric}
    result = read_json(file) if file.is_file() else {}
    if result.get("made_of") != made_of:
        logged = run.folder / "metrics.json" if run else None
        # Of the training that made it, whatever its config says now.
        length = max(read_metrics(logged), default=None) if logged else None
        result = {
            "config": taught["config"],
            "method": TEACHER,
            "seed": run.seed if run else None,
            "max_iter": length,
            "metric": student.metric,
            "metrics": evaluate_teacher(cfg),
            "reported": {},
            "parameters": load_teacher(cfg)[1],
            **_costs(logged, length or 0, student.device),
            "made_of": made_of,
            "versions": versions(),
        }
        write_json(file, result)
    return _reported(result, file, experiment, lambda: evaluate_teacher(student.load_config(*experiment.report)))


def _reported(
    result: dict[str, Any], file: Path, experiment: Experiment, evaluated: Callable[[], Metrics]
) -> dict[str, Any]:
    """The result with the metrics that are reported as ``values``; evaluated and kept in ``file`` where missing."""
    if not experiment.report:
        return {**result, "values": result["metrics"]}
    key = " ".join(experiment.report)
    if key not in result["reported"]:
        result["reported"][key] = _checked(evaluated(), result["metric"])
        write_json(file, result)
    return {**result, "values": result["reported"][key]}


@cache
def versions() -> dict[str, str]:
    """Of Python and the libraries that decide a run's numbers."""
    names = ("d2kd", "torch", "torchvision", "detectron2", "numpy", "pycocotools")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **found}
