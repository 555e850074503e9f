"""Evaluation of students and teachers, with an AP of 0 for a model that detects nothing."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers import batched_nms
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn

from d2kd.checkpoint import whole_file
from d2kd.engine.defaults import ConfigError
from d2kd.modeling.adapters import guarded_hooks
from d2kd.modeling.detectors.interface import num_classes_of
from d2kd.modeling.distillation.agreement import raised_on_all_ranks

__all__ = ["Results", "evaluate", "results_line", "teacher_predictor", "write_evaluation"]

_LOGGER = f"detectron2.{__name__}"  # below Detectron2's, which any script that trains sets up
logger = logging.getLogger(_LOGGER)

Results = dict[str, Any]  # task -> {metric -> value}; empty on all ranks but the main one


class _Together(DatasetEvaluator):
    """The first of an evaluation's evaluators: here ranks wait for one another, before the others do."""

    reached = False

    def evaluate(self) -> dict[str, int]:
        self.reached = True
        with raised_on_all_ranks():
            return {}


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
) -> Results:
    """
    :func:`detectron2.evaluation.inference_on_dataset`, with AP, AP50 and AP75 of 0 if the model detects nothing:
    ``COCOEvaluator`` then returns ``{}`` or NaN, from which no best checkpoint can be chosen. Without annotations there
    is no AP, which is said. What other evaluators return stays as it is. Every rank must call it.

    Args:
        model: maps a batch of ``data_loader`` to a list of ``{"instances": Instances}``.
        data_loader: test loader of known length.
        evaluator: one evaluator, or several.

    Returns:
        task -> {metric -> value} on the main rank, e.g. ``{"bbox": {"AP": 41.0, ...}}``; empty on the others.

    Raises:
        Exception: what the model, the data or an evaluator's ``process`` raised on some rank, on all ranks; see
            :func:`d2kd.modeling.distillation.agreement.raised_on_all_ranks`.
    """
    evaluators = list(evaluator) if isinstance(evaluator, MutableSequence) else [evaluator]
    together = _Together()
    try:
        results = inference_on_dataset(
            model, data_loader, DatasetEvaluators([together, *evaluators, _CountDetections()])
        )
    except Exception:
        if not together.reached:  # the others wait there
            with raised_on_all_ranks():
                raise
        raise
    count = results.pop("detections", None)
    coco = [each for each in evaluators if isinstance(each, COCOEvaluator)]
    if coco and not any(map(_has_annotations, coco)):
        log_first_n(
            logging.WARNING,
            "The test set has no annotations: there is no AP, and no best checkpoint is kept "
            "(dataloader.test.dataset, dataloader.evaluator).",
            name=_LOGGER,
            key="message",
        )
        return {task: values for task, values in results.items() if not all(map(math.isnan, values.values()))}
    if count == 0 and (coco or not results or "bbox" in results):
        bbox = results.setdefault("bbox", {})
        bbox.update({k: 0.0 for k in ("AP", "AP50", "AP75") if math.isnan(bbox.get(k, math.nan))})
    return results


def results_line(results: Mapping[str, Any]) -> str:
    """The metrics of an evaluation in one line, without those of single classes and those that are NaN."""
    values = flatten_results_dict(results)
    shown = {name: x for name, x in values.items() if "/AP-" not in name and not math.isnan(x)}
    return ", ".join(f"{name.replace('bbox/', '')} {x:.2f}" for name, x in shown.items()) or "no metrics"


def write_evaluation(folder: str | Path, evaluation: Mapping[str, object]) -> None:
    """
    Write ``evaluation.json`` into a run's folder, whole or not at all, and log where it is; one that was there is
    replaced. Metrics that are NaN, such as the AP of a class without objects, are null.

    Args:
        evaluation: what was evaluated, and its results, as of :func:`evaluate`.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(folder, "evaluation.json")
    with whole_file(path) as partial:
        partial.write_text(json.dumps(_plain(evaluation), indent=2) + "\n")
    logger.info("The results are in %s", path)


def _plain(value: object) -> object:
    """What JSON has for it: numbers of numpy and torch are numbers, NaN is null, else unknown objects are texts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        number = float(value)  # type: ignore[arg-type]  # what it does not take, it refuses
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def _has_annotations(evaluator: COCOEvaluator) -> bool:
    return bool(evaluator._coco_api.anns)  # which it does not tell otherwise


def teacher_predictor(model: nn.Module) -> Callable[[Sequence[Mapping]], list[dict]]:
    """
    The loaded teacher of a ``DistilledDetector``, to be evaluated on the student's test loader: it gets images in its
    own channel order, and its detections get the student's class ids. Those of classes that its class map leaves out
    are dropped, after they took their share of ``max_detections_per_image``. Where it merges several classes, their
    boxes suppress one another, as those of one class do.

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
    class_map = teacher.class_map
    if class_map is not None:
        dropped = num_classes_of(detector) - len(class_map)
        logger.info(
            "The teacher's detections get the student's class ids by model.teacher.class_map; those of the %d classes "
            "that it leaves out are dropped",
            dropped,
        )

    def predict(batch: Sequence[Mapping]) -> list[dict]:
        with guarded_hooks():
            found = detector(batch if same_order else [{**item, "image": item["image"].flip(0)} for item in batch])
        if class_map is None:
            return found
        outputs = [_with_students_ids(output, class_map) for output in found]
        if len(set(class_map.values())) < len(class_map):
            for output in outputs:
                output["instances"] = _suppressed(output["instances"], getattr(detector, "test_nms_thresh", 0.5))
        return outputs

    return predict


def _with_students_ids(output: Mapping[str, Any], class_map: Mapping[int, int]) -> dict[str, Any]:
    instances: Instances = output["instances"]
    ids = [class_map.get(number, -1) for number in instances.pred_classes.tolist()]
    instances.pred_classes = instances.pred_classes.new_tensor(ids)
    return {**output, "instances": instances[instances.pred_classes >= 0]}


def _suppressed(instances: Instances, iou: float) -> Instances:
    return instances[batched_nms(instances.pred_boxes.tensor, instances.scores, instances.pred_classes, iou)]
