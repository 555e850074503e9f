"""What is checked of a run's data and evaluation: before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from omegaconf import DictConfig, OmegaConf
from PIL import ImageMode
from torch import nn

from d2kd.config.nodes import dataset_names, target_of
from d2kd.engine.defaults import ConfigError
from d2kd.engine.ema import EMA_PREFIX
from d2kd.engine.loaders import make_evaluator, make_loader
from d2kd.modeling import DistilledDetector

__all__ = ["check_classes", "check_evaluation", "check_image_format", "check_metric"]

logger = logging.getLogger(f"detectron2.{__name__}")  # which any script that trains sets up

_ABSENT = object()
#: What COCOEvaluator returns of each task, beside the AP of each class.
_COCO_METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


def check_evaluation(cfg: DictConfig) -> None:
    """
    See that a run can be evaluated, before it is trained: its test data and its evaluator are made once and dropped.

    Args:
        cfg: ``dataloader`` and ``train.best_metric`` are read.

    Raises:
        ConfigError: the evaluator is for another dataset or task, or does not return ``train.best_metric``.
        ValueError, OSError: the data or the evaluator cannot be made.
    """
    make_loader(cfg, "test")
    node = cfg.dataloader.evaluator
    is_coco = OmegaConf.is_dict(node) and target_of(node) is COCOEvaluator
    tasks = (node.get("tasks") or ("bbox",)) if is_coco else ()
    unknown = [task for task in tasks if task not in _COCO_METRICS]
    if unknown:
        raise ConfigError(
            f"dataloader.evaluator.tasks has {unknown[0]!r}, expected some of {', '.join(_COCO_METRICS)}."
        )
    make_evaluator(cfg)
    if not is_coco:
        return
    classes = MetadataCatalog.get(node.dataset_name).get("thing_classes") or ()
    known = [f"{task}/{x}" for task in tasks for x in (*_COCO_METRICS[task], *(f"AP-{name}" for name in classes))]
    check_metric(cfg.train.best_metric.removeprefix(EMA_PREFIX), known)


def check_metric(metric: str, results: Mapping[str, Any] | Iterable[str]) -> None:
    """
    Args:
        metric: ``train.best_metric``.
        results: of an evaluation, or the names of the metrics that it returns; none: nothing could be measured.

    Raises:
        ConfigError: the metric is not among them.
    """
    known = [*(flatten_results_dict(results) if isinstance(results, Mapping) else results)]
    if not known or metric in known:
        return
    near = get_close_matches(metric, known, 1)
    hint = f": did you mean {near[0]}?" if near else "."
    more = " and others" if len(known) > 6 else ""
    raise ConfigError(
        f"train.best_metric is {metric!r}, which dataloader.evaluator does not return{hint} It returns "
        f"{', '.join(known[:6])}{more}."
    )


def check_image_format(cfg: DictConfig, model: nn.Module) -> None:
    """
    Check that the data mappers read images with the channels, and in the order, that the model expects.

    Raises:
        ConfigError: they do not, and the message has both values and keys; or the model divides pixels by 0.
    """
    expected = getattr(model, "input_format", None)
    statistics, deviations = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if deviations is not None and not (deviations > 0).all():
        key = "model.student.pixel_std" if isinstance(model, DistilledDetector) else "model.pixel_std"
        raise ConfigError(
            f"{key} is {deviations.flatten().tolist()}, expected numbers > 0, by which pixels are divided."
        )
    for split in ("train", "test"):
        key = f"dataloader.{split}.mapper.image_format"
        found = OmegaConf.select(cfg, key, default=_ABSENT)
        if found is _ABSENT:
            continue
        if found is None:
            wanted = "that of the images that the model was made for" if expected is None else repr(expected)
            raise ConfigError(
                f"{key} is null, so that images keep the channel order of their files, expected {wanted}: set it "
                "(${model.input_format} is the order of a distilled model)."
            )
        channels = _channels(found)
        if statistics is not None and channels not in (None, len(statistics)):
            raise ConfigError(
                f"{key} is {found!r}, images whose channels are {channels}, but the model's pixel_mean has "
                f"{len(statistics)}: make them agree."
            )
        if expected is not None and found != expected:
            raise ConfigError(f"{key} is {found!r}, but model.input_format is {expected!r}: make them equal.")


def _channels(image_format: str) -> int | None:
    """Of Detectron2's image formats: its own two, and Pillow's modes; None: unknown."""
    if image_format in ("BGR", "YUV-BT.601"):
        return 3
    try:
        return len(ImageMode.getmode(image_format).bands)
    except KeyError:
        return None


def check_classes(cfg: DictConfig, model: nn.Module) -> None:
    """
    Compare the classes of the training data with the model's and with the test data's, where the data's metadata name
    them (``thing_classes``); called once they are loaded. Classes that the data do not have are logged.

    Args:
        cfg: only ``dataloader.{train,test}.dataset`` is read.
        model: the one to train.

    Raises:
        ConfigError: the training data have more classes than the model, or the test data give an id to another class.
    """
    known = getattr(model.student if isinstance(model, DistilledDetector) else model, "num_classes", None)
    key = "model.student.num_classes" if isinstance(model, DistilledDetector) else "model.num_classes"
    trained = _classes_of_data(cfg, "train")
    for test, theirs in _classes_of_data(cfg, "test").items():
        for name, ours in trained.items():
            if differing := [f"{i} is {a!r} and {b!r}" for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]:
                raise ConfigError(
                    f"{name} (dataloader.train.dataset) and {test} (dataloader.test.dataset) give ids to "
                    f"other classes, {differing[0]}: bring the categories of their files into one order."
                )
    for name, classes in trained.items():
        if not isinstance(known, int):
            continue
        if len(classes) > known:
            raise ConfigError(
                f"{name} (dataloader.train.dataset) has {len(classes)} classes, but {key} is {known}: set it, "
                f"and num_classes of the head, to {len(classes)}."
            )
        if len(classes) < known:
            logger.warning(
                "%s has %d classes (%s), but %s is %d: the others are trained as background.",
                name,
                len(classes),
                ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else ""),
                key,
                known,
            )


def _classes_of_data(cfg: DictConfig, split: str) -> dict[str, Sequence[str]]:
    """By the name of each dataset, the names of its classes; without those that are not known."""
    known = [name for name in dataset_names(cfg, split) if name in MetadataCatalog.list()]
    return {name: classes for name in known if (classes := MetadataCatalog.get(name).get("thing_classes"))}
