"""Evaluation of students and teachers, with an AP of 0 for a model that detects nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from d2kd.engine.defaults import ConfigError
from d2kd.modeling.adapters import guarded_hooks

__all__ = ["evaluate", "teacher_predictor"]


class _CountDetections(DatasetEvaluator):
    def reset(self) -> None:
        self._count = 0

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        self._count += sum(len(output["instances"]) for output in outputs)

    def evaluate(self) -> dict[str, int]:
        return {"detections": sum(comm.gather(self._count))}


def evaluate(
    model: nn.Module | Callable,
    data_loader: Iterable,
    evaluator: DatasetEvaluator | MutableSequence[DatasetEvaluator],
) -> dict[str, Any]:
    """
    :func:`detectron2.evaluation.inference_on_dataset`, with AP, AP50 and AP75 of 0 if the model detects nothing:
    ``COCOEvaluator`` then returns ``{}`` or NaN, from which no best checkpoint can be chosen. What other evaluators
    return stays as it is. Every rank must call it.

    Args:
        model: maps a batch of ``data_loader`` to a list of ``{"instances": Instances}``.
        data_loader: test loader of known length.
        evaluator: one evaluator, or several.

    Returns:
        task -> {metric -> value} on the main rank, e.g. ``{"bbox": {"AP": 41.0, ...}}``; empty on the others.
    """
    evaluators = list(evaluator) if isinstance(evaluator, MutableSequence) else [evaluator]
    results = inference_on_dataset(model, data_loader, DatasetEvaluators([*evaluators, _CountDetections()]))
    coco = any(isinstance(each, COCOEvaluator) for each in evaluators)
    if results.pop("detections", None) == 0 and (coco or not results or "bbox" in results):
        bbox = results.setdefault("bbox", {})
        bbox.update({k: 0.0 for k in ("AP", "AP50", "AP75") if math.isnan(bbox.get(k, math.nan))})
    return results


def teacher_predictor(model: nn.Module) -> Callable[[Sequence[Mapping]], list[dict]]:
    """
    The loaded teacher of a ``DistilledDetector``, to be evaluated on the student's test loader: it gets images in its
    own channel order.

    Raises:
        ConfigError: the model has no teacher or no losses.
    """
    teacher = getattr(model, "teacher", None)
    if teacher is None:
        raise ConfigError(
            "There is no teacher to check (--check-teacher), expected a model.teacher and at least one of model.losses."
        )
    detector = teacher.detector
    same_order = teacher.input_format == model.input_format

    def predict(batch: Sequence[Mapping]) -> list[dict]:
        with guarded_hooks():
            return detector(batch if same_order else [{**item, "image": item["image"].flip(0)} for item in batch])

    return predict
