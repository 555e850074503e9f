"""Results of finished runs: metrics on a split, cost, curve, and what they were made with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import math
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from d2kd.engine.defaults import resolve_device
from d2kd.engine.evaluation import evaluate
from d2kd.experiments.curves import CurvePoint, curve, read_metrics
from d2kd.experiments.files import read_json, write_json
from d2kd.experiments.jobs import JobError
from d2kd.experiments.plan import (
    ALONE,
    TEACHER,
    Experiment,
    Run,
    check_request,
    plan_run,
    plan_teacher,
    request,
    sha256,
    stretched_for,
)
from d2kd.experiments.statistics import METRICS

__all__ = [
    "collect",
    "evaluate_checkpoint",
    "load_detector",
    "train_result",
    "versions",
]


def load_detector(cfg: DictConfig, checkpoint: str | Path) -> nn.Module:
    """The config's model with a checkpoint's weights, in eval mode, on ``train.device``."""
    model = instantiate(cfg.model).to(resolve_device(cfg.train.device))
    DetectionCheckpointer(model).load(str(checkpoint))
    return model.eval()


def evaluate_checkpoint(cfg: DictConfig, checkpoint: str | Path, split: str) -> dict[str, float | None]:
    """:data:`METRICS` of a checkpoint on a split; None where a split has no object of that size."""
    cfg.dataloader.test.dataset.names = f"digits_{split}"
    model = load_detector(cfg, checkpoint)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what the table says
        loader = instantiate(cfg.dataloader.test)  # registers the data that the evaluator needs
        results = evaluate(model, loader, instantiate(cfg.dataloader.evaluator))
    return _metrics(results["bbox"], prefix="")


def _metrics(record: Mapping[str, float], prefix: str) -> dict[str, float | None]:
    values = {key: record.get(prefix + key, math.nan) for key in METRICS}
    return {key: None if math.isnan(value) else float(value) for key, value in values.items()}


def train_result(run: Run) -> dict[str, Any]:
    """The result of a finished run: val metrics, cost, curve, its request and the versions of libraries."""
    records = read_metrics(run.folder / "metrics.json", run.max_iter)
    points = curve(records)
    cost = next((r for r in reversed(records.values()) if "cost/cpu_seconds" in r), {})
    cpu, wall = cost.get("cost/cpu_seconds"), cost.get("cost/wall_seconds")
    cfg = run.load_config()
    if points and points[-1].iteration == run.max_iter:
        val = _metrics(records[run.max_iter], prefix="bbox/")
    else:  # killed between its last checkpoint and its last evaluation, or trained elsewhere
        val = evaluate_checkpoint(cfg, run.folder / "model_final.pth", "val")
        points.append(CurvePoint(run.max_iter, cpu, math.nan if val["AP"] is None else val["AP"]))
    model = instantiate(cfg.model)
    return {
        "detector": run.detector,
        "method": run.method,
        "seed": run.seed,
        "max_iter": run.max_iter,
        "metrics": {"val": val},
        "parameters": sum(p.numel() for name, p in model.named_parameters() if not name.startswith("distillation.")),
        "seconds_per_iteration": None if wall is None else wall / run.max_iter,
        "cpu_seconds": cpu,
        "curve": points,
        "request": request(run),
        "versions": versions(),
    }


def _with_split(result: dict[str, Any], run: Run, checkpoint: str | Path, split: str, file: Path) -> dict[str, Any]:
    """The result with the split's metrics at its top level; evaluated and kept in ``file`` where missing."""
    if split not in result["metrics"]:
        result["metrics"][split] = evaluate_checkpoint(run.load_config(), checkpoint, split)
        write_json(file, result)
    return {**result, "split": split, **result["metrics"][split]}


def collect(experiment: Experiment) -> tuple[list[dict[str, Any]], int]:
    """
    Results of the experiment's teachers and of all finished runs in its output folder that were made with its
    overrides and the configs as they are now, whichever detectors, methods and seeds it names.

    Returns:
        (results, with the metrics of ``experiment.split`` at their top level; number of other runs left out)
    """
    results, left_out = [], 0
    for file in sorted(experiment.output.glob("*/*/seed*/result.json")):
        result = read_json(file)
        detector, method, seed = result["detector"], result["method"], result["seed"]
        max_iter = result["max_iter"] if stretched_for(method) else None
        try:
            run = plan_run(experiment, detector, method, seed, max_iter)
            check_request(run)
        except (JobError, ValueError):  # another request, or a config that no longer exists
            left_out += 1
            continue
        results.append(_with_split(result, run, run.folder / "model_final.pth", experiment.split, file))
    if experiment.distilled:
        results += [_teacher_result(experiment, detector) for detector in sorted({r["detector"] for r in results})]
    rank = {TEACHER: 0, ALONE: 1}

    def place(result: dict[str, Any]) -> tuple[str, int, str, int]:
        method = result["method"]
        return result["detector"], rank.get(method, 2 if stretched_for(method) else 3), method, result["seed"]

    return sorted(results, key=place), left_out


def _teacher_result(experiment: Experiment, detector: str) -> dict[str, Any]:
    run, checkpoint = plan_teacher(experiment, detector)
    file = experiment.output / detector / TEACHER / "result.json"
    wanted = {"checkpoint": checkpoint, "sha256": sha256(checkpoint)}
    result = read_json(file) if file.is_file() else {}
    if result.get("weights") != wanted:
        result = {**train_result(run), "weights": wanted}
        write_json(file, result)
    return _with_split(result, run, checkpoint, experiment.split, file)


@cache
def versions() -> dict[str, str]:
    """Of Python and the libraries that decide a run's numbers."""
    names = ("d2kd", "torch", "torchvision", "detectron2", "numpy", "pycocotools")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **found}
