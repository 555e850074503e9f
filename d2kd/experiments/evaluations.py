"""A checkpoint, or a teacher, evaluated as a config says."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import DictConfig
from torch import nn

from d2kd.checkpoint import load_strictly
from d2kd.engine import EMA_PREFIX, evaluate, resolve_device, teacher_predictor

__all__ = ["Metrics", "evaluate_student", "evaluate_teacher", "load_student", "load_teacher", "without_nan"]

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
        with _same_json_files():
            results = evaluate(model, loader, instantiate(cfg.dataloader.evaluator))
    return without_nan(flatten_results_dict(results))


@contextlib.contextmanager
def _same_json_files() -> Iterator[None]:
    """Take away the ``json_file`` that ``COCOEvaluator`` gives a dataset without one: it is no file of its labels."""
    before = {name for name in MetadataCatalog.list() if MetadataCatalog.get(name).get("json_file")}
    try:
        yield
    finally:
        for name in set(MetadataCatalog.list()) - before:
            vars(MetadataCatalog.get(name)).pop("json_file", None)


def without_nan(values: Mapping[str, float]) -> Metrics:
    """The values, None where one is NaN, which JSON lacks."""
    return {key: None if math.isnan(value) else float(value) for key, value in values.items()}
