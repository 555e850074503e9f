"""What is checked of a run's config: before anything is built or written, and before the first step."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import ImageMode
from torch import nn

from d2kd.checkpoint import WholeCheckpointer
from d2kd.config.nodes import target_of
from d2kd.engine.defaults import ConfigError, amp_dtype, resolve_device
from d2kd.engine.trainer import check_clip_grad
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.state import build_losses
from d2kd.structures import kept_random_state

__all__ = ["check_classes", "check_config", "check_image_format"]

logger = logging.getLogger(f"detectron2.{__name__}")  # which any script that trains sets up

_REQUIRED = "model optimizer lr_multiplier dataloader.train dataloader.test dataloader.evaluator".split()
_REQUIRED_TRAIN = (
    "output_dir init_checkpoint max_iter seed device amp.enabled amp.dtype clip_grad accumulate ddp trainer "
    "checkpointer best_metric eval_period log_period"
).split()
_NOT_NULL = [*_REQUIRED, "train.ddp", "train.trainer", "train.checkpointer"]
#: Keys whose values are whole numbers, and the least value that makes sense.
_WHOLE_NUMBERS = {
    "train.seed": 0,
    "train.max_iter": 1,
    "train.accumulate": 1,
    "train.eval_period": 0,  # after the last iteration only
    "train.log_period": 1,
    "train.checkpointer.period": 1,
    "train.checkpointer.max_to_keep": 1,
    "train.trainer.gather_metric_period": 1,
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.num_workers": 0,
    "dataloader.test.num_workers": 0,
}
_OPTIONAL = {"train.checkpointer.max_to_keep"}  # null: all
_MISSING = object()


def check_config(cfg: DictConfig, *, resume: bool = False) -> None:
    """
    Check a run's config before anything is built or written.

    Args:
        cfg: see :func:`d2kd.engine.do_train`.
        resume: the run continues from the last checkpoint in ``train.output_dir``; if there is one,
            ``train.init_checkpoint`` is not read and need not exist.

    Raises:
        ConfigError: missing keys or nodes, no ``train.output_dir``, a number of iterations, period, seed or learning
            rate that is none, an unknown device or dtype, float16 on a CPU, several CPU processes beside a visible GPU,
            or distillation losses whose weights are all 0.
        ValueError, TypeError: a loss that cannot be built, or a ``train.clip_grad`` that is none.
        FileNotFoundError: ``train.init_checkpoint`` is a path, and there is no such file.
    """
    keys = [*_REQUIRED, *(f"train.{key}" for key in _REQUIRED_TRAIN)]
    missing = [key for key in keys if OmegaConf.select(cfg, key, default=_MISSING) is _MISSING]
    if missing:
        raise ConfigError(
            f"The config lacks {', '.join(missing)}: configs/common/train.py has every key of `train`, and "
            "configs/common the other parts."
        )
    train = cfg.train
    for key in _NOT_NULL:
        if OmegaConf.select(cfg, key) is None:
            raise ConfigError(f"{key} is null, expected a node with its arguments.")
    if not (isinstance(train.output_dir, str) and train.output_dir):
        raise ConfigError(f"train.output_dir is {train.output_dir!r}, expected the path of a folder.")
    for key, least in _WHOLE_NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=_MISSING)
        if value is None and key in _OPTIONAL:
            continue
        if value is not _MISSING and (type(value) is not int or value < least):
            raise ConfigError(f"{key} is {value!r}, expected a whole number >= {least}.")
    if train.seed >= 2**32:
        raise ConfigError(f"train.seed is {train.seed}, expected less than 2**32, as numpy does.")
    rate = OmegaConf.select(cfg, "optimizer.lr", default=0.0)
    if isinstance(rate, (bool, str, type(None))) or not (rate >= 0 and math.isfinite(rate)):
        raise ConfigError(f"optimizer.lr is {rate!r}, expected a number >= 0.")
    minutes = OmegaConf.select(cfg, "train.ddp.timeout_minutes", default=30)
    if isinstance(minutes, (bool, str, type(None))) or not (minutes > 0 and math.isfinite(minutes)):
        raise ConfigError(f"train.ddp.timeout_minutes is {minutes!r}, expected a number > 0.")
    check_clip_grad(train.clip_grad)
    device = resolve_device(train.device)
    if amp_dtype(train.amp) == torch.float16 and device.type == "cpu":
        raise ConfigError(
            "train.amp.dtype=float16 needs a GPU, but training runs on the CPU: set train.amp.dtype=bfloat16 "
            "or train.amp.enabled=False."
        )
    if device.type == "cpu" and comm.get_world_size() > 1 and torch.distributed.get_backend() == "nccl":
        raise ConfigError(
            "train.device=cpu with several processes needs a machine without visible GPUs, since "
            "Detectron2's launcher picks NCCL where it sees one: set CUDA_VISIBLE_DEVICES to nothing."
        )
    path = train.init_checkpoint
    if resume and WholeCheckpointer(nn.Module(), train.output_dir).has_checkpoint():
        path = ""
    # The checkpointer reads URLs, and takes queries off paths ("x.pkl?matching_heuristics=True").
    if path and "://" not in path and not os.path.isfile(path.split("?")[0]):
        what = "which is a folder, expected a file" if os.path.isdir(path) else "but there is no such file"
        raise FileNotFoundError(f"train.init_checkpoint is {path!r}, {what}.")
    if target_of(cfg.model) is DistilledDetector and cfg.model.get("losses"):
        _check_losses(cfg.model.losses)


def _check_losses(nodes: object) -> None:
    if not isinstance(nodes, DictConfig):
        found = "a list" if isinstance(nodes, ListConfig) else repr(nodes)
        raise ConfigError(f"model.losses is {found}, expected a mapping of names to losses, or null.")
    with kept_random_state():
        losses = build_losses({str(name): node for name, node in nodes.items()})
    if losses and not any(loss.weight > 0 for loss in losses.values()):
        raise ConfigError(
            f"The weights of all model.losses ({', '.join(losses)}) are 0, so that nothing would be distilled: set a "
            "weight, or model.losses=null to train the student alone."
        )


def check_image_format(cfg: DictConfig, model: nn.Module) -> None:
    """
    Check that the data mappers read images with the channels, and in the order, that the model expects.

    Raises:
        ConfigError: they do not; the message has both values and keys.
    """
    expected = getattr(model, "input_format", None)
    statistics = getattr(model, "pixel_mean", None)
    for split in ("train", "test"):
        key = f"dataloader.{split}.mapper.image_format"
        found = OmegaConf.select(cfg, key, default=None)
        if found is None:
            continue
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
        cfg: only ``dataloader.{train,test}.dataset.names`` and ``model`` are read.
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
                    f"{name} (dataloader.train.dataset.names) and {test} (dataloader.test.dataset.names) give ids to "
                    f"other classes, {differing[0]}: bring the categories of their files into one order."
                )
    for name, classes in trained.items():
        if not isinstance(known, int):
            continue
        if len(classes) > known:
            raise ConfigError(
                f"{name} (dataloader.train.dataset.names) has {len(classes)} classes, but {key} is {known}: set it, "
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
    names = OmegaConf.select(cfg, f"dataloader.{split}.dataset.names", default=())
    names = list(names) if isinstance(names, (ListConfig, tuple)) else [names]
    known = [name for name in names if name in MetadataCatalog.list()]
    return {name: classes for name in known if (classes := MetadataCatalog.get(name).get("thing_classes"))}
