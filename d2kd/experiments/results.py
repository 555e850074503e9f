"""Results of finished runs: metrics, cost, curve, and what they were made with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from d2kd.config import ALONE, config_path
from d2kd.engine import EMA_FILE, EMA_PREFIX
from d2kd.experiments.curves import COSTS, CurvePoint, curve, final_metrics, read_metrics
from d2kd.experiments.datasets import annotations_sha256, register_data, tested_on
from d2kd.experiments.digests import config_sha256, sha256
from d2kd.experiments.evaluations import Metrics, evaluate_student, evaluate_teacher, load_teacher, without_nan
from d2kd.experiments.files import read_json, write_json
from d2kd.experiments.jobs import JobError
from d2kd.experiments.libraries import versions
from d2kd.experiments.plan import (
    TEACHER,
    Experiment,
    Run,
    config_label,
    plan_run,
    stretched_for,
    stretched_length,
)
from d2kd.experiments.requests import check_request, request_file
from d2kd.experiments.teachers import plan_teacher, teacher_is_ready

__all__ = ["collect", "train_result"]


def _evaluate_run(run: Run, cfg: DictConfig) -> Metrics:
    """What the evaluator returns of a run's last weights and, with ``train.ema``, of their average."""
    metrics = evaluate_student(cfg, run.folder / "model_final.pth")
    averaged = evaluate_student(cfg, run.folder / EMA_FILE) if cfg.train.get("ema") else {}
    return metrics | {f"{EMA_PREFIX}{name}": value for name, value in averaged.items()}


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
    The result of a finished run: metrics, cost, curve, its request, the commit that it was begun at and the versions of
    libraries.

    Raises:
        JobError: the evaluator does not return ``train.best_metric``.
    """
    logged, metric = run.folder / "metrics.json", run.metric
    request = read_json(request_file(run))
    git = request.pop("git")
    costs = _costs(logged, run.max_iter, run.device)
    points = curve(read_metrics(logged, run.max_iter), metric, COSTS[run.device])
    metrics = without_nan(final_metrics(logged, run.max_iter))
    if not metrics:  # killed between its last checkpoint and its last evaluation
        metrics = _checked(_evaluate_run(run, run.load_config()), metric)
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
        "request": request,
        "git": git,
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
    overrides and the configs as they are now, whichever configs, methods and seeds it names. Of several configs of one
    name, which results would not tell apart, those of the experiment's are taken, or of the first.

    Returns:
        (results, with what is reported as ``values``; number of other runs left out)

    Raises:
        JobError: the evaluator does not return the metric.
    """
    kind = experiment.metric, experiment.device
    files = sorted(experiment.output.glob("*/*/seed*/result.json"))
    kept: list[tuple[Path, dict[str, Any], Run]] = []
    of_name = {config_label(config): _resolved(config) for config in experiment.configs}
    for file in files:
        result = read_json(file)
        run = _run_of(experiment, result)
        if run is not None and (result["metric"], result["device"]) == kind:
            if of_name.setdefault(result["config"], _resolved(run.config)) == _resolved(run.config):
                kept.append((file, result, run))
    by_key = {_key(result): result for _, result, _ in kept}
    results = [
        _reported(result, file, run, experiment.report, partial(_evaluate_run, run))
        for file, result, run in kept
        if _follows(result, by_key)
    ]
    left_out = len(files) - len(results)
    taught = {r["config"]: r for r in results if r["method"] != ALONE and not stretched_for(r["method"])}
    results += filter(None, (_teacher_result(experiment, result) for result in taught.values()))
    rank = {TEACHER: 0, ALONE: 1}

    def place(result: dict[str, Any]) -> tuple[str, int, str, int]:
        method = result["method"]
        return result["config"], rank.get(method, 2 if stretched_for(method) else 3), method, result["seed"]

    return sorted(results, key=place), left_out


def _resolved(config: str) -> Path:
    return Path(config_path(config)).resolve()


def _run_of(experiment: Experiment, result: Mapping[str, Any]) -> Run | None:
    """
    The run of a result; None for another request than the experiment's, a config that no longer exists, or data that
    are not there.
    """
    max_iter = result["max_iter"] if stretched_for(result["method"]) else None
    try:
        run = plan_run(experiment, result["config_file"], result["method"], result["seed"], max_iter)
        if run.config not in experiment.configs:  # whose data were loaded before they were trained
            register_data(run.load_config(), run.config, "train", "test")
        check_request(run)
    except (ValueError, OSError, ImportError):
        return None
    return run


def _key(result: Mapping[str, Any], method: str | None = None) -> tuple[str, str, int]:
    """Of a result, or of that of another method beside it."""
    return result["config"], method or result["method"], result["seed"]


def _follows(result: Mapping[str, Any], kept: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> bool:
    """Whether a stretched run has the length that follows from the costs of its seed's other runs, as they are now."""
    source = stretched_for(result["method"])
    if source is None:
        return True
    alone, distilled = (kept.get(_key(result, method)) for method in (ALONE, source))
    return alone is not None and distilled is not None and result["max_iter"] == stretched_length(alone, distilled)


def _teacher_result(experiment: Experiment, taught: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    The metrics of a distilled student's teacher on the student's data, and the cost of its training where that is
    known. None for a teacher that is not there any more, and for one of other classes, whose detections the student's
    evaluator cannot read.
    """
    config = taught["config_file"]
    student = plan_run(experiment, config, taught["method"], taught["seed"])
    cfg = student.load_config()
    if cfg.model.teacher.class_map is not None or not teacher_is_ready(cfg.model.teacher.checkpoint):
        return None
    checkpoint, run = plan_teacher(experiment, config)
    file = experiment.output / taught["config"] / TEACHER / "result.json"
    made_of = {
        "checkpoint": checkpoint,
        "sha256": sha256(checkpoint),
        "metric": student.metric,
        "annotations_sha256": annotations_sha256(cfg, "test"),
        "config_sha256": [
            config_sha256(node) for node in (cfg.model.teacher, cfg.dataloader.test, cfg.dataloader.evaluator)
        ],
    }
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
    return _reported(result, file, student, experiment.report, evaluate_teacher)


def _reported(
    result: dict[str, Any],
    file: Path,
    run: Run,
    report: Sequence[str],
    evaluated: Callable[[DictConfig], Metrics],
) -> dict[str, Any]:
    """
    The result with the metrics that are reported as ``values``; evaluated and kept in ``file`` where they are missing,
    or of other annotations. ``metrics_on`` and ``values_on`` say of what data both are: the names of datasets, and what
    else ``report`` sets.

    Args:
        run: whose config is evaluated with the overrides ``report``.
    """
    tested = tested_on(run.load_config())
    if not report:
        return {**result, "values": result["metrics"], "metrics_on": tested, "values_on": tested}
    key, cfg = " ".join(report), run.load_config(*report)
    register_data(cfg, run.config, "test")
    annotations = annotations_sha256(cfg, "test")
    known = result.setdefault("reported_annotations_sha256", {})
    if key not in result["reported"] or known.get(key) != annotations:
        result["reported"][key] = _checked(evaluated(cfg), result["metric"])
        known[key] = annotations
        write_json(file, result)
    where = " ".join(override.removeprefix("dataloader.test.dataset.names=") for override in report)
    return {**result, "values": result["reported"][key], "metrics_on": tested, "values_on": where}
