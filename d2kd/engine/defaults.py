"""From a config to a running trainer: checks, device, precision, wrapping, writers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from detectron2 import engine as d2_engine
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter
from omegaconf import DictConfig, OmegaConf
from torch import nn

__all__ = [
    "ConfigError",
    "amp_dtype",
    "check_config",
    "check_image_format",
    "create_ddp_model",
    "default_writers",
    "resolve_device",
]

logger = logging.getLogger(f"detectron2.{__name__}")  # which any script that trains sets up

_REQUIRED = "model optimizer lr_multiplier dataloader.train dataloader.test dataloader.evaluator".split()
_REQUIRED_TRAIN = (
    "output_dir init_checkpoint max_iter seed device amp.enabled amp.dtype clip_grad accumulate ddp trainer "
    "checkpointer best_metric eval_period log_period"
).split()
_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class ConfigError(ValueError):
    """A config or command line that cannot run; its message says what to change and needs no traceback."""


def check_config(cfg: DictConfig, *, resume: bool = False) -> None:
    """
    Check a run's config before anything is built.

    Args:
        cfg: see :func:`d2kd.engine.do_train`.
        resume: the run continues from the last checkpoint in ``train.output_dir``; if there is one,
            ``train.init_checkpoint`` is not read and need not exist.

    Raises:
        ConfigError: missing keys, a seed that is no integer >= 0, an unknown device or dtype, float16 on a CPU, or
            several CPU processes beside a visible GPU.
        FileNotFoundError: ``train.init_checkpoint`` is a path, and there is no such file.
    """
    absent = object()
    keys = [*_REQUIRED, *(f"train.{key}" for key in _REQUIRED_TRAIN)]
    missing = [key for key in keys if OmegaConf.select(cfg, key, default=absent) is absent]
    if missing:
        raise ConfigError(
            f"The config lacks {', '.join(missing)}: configs/common/train.py has every key of `train`, and "
            "configs/common the other parts."
        )
    train = cfg.train
    if not isinstance(train.seed, int) or train.seed < 0:
        raise ConfigError(f"train.seed is {train.seed!r}, expected an integer >= 0.")
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
    if resume and DetectionCheckpointer(nn.Module(), train.output_dir).has_checkpoint():
        path = ""
    # The checkpointer reads URLs, and takes queries off paths ("x.pkl?matching_heuristics=True").
    if path and "://" not in path and not os.path.isfile(path.split("?")[0]):
        raise FileNotFoundError(f"train.init_checkpoint is {path!r}, but there is no such file.")


def resolve_device(name: str) -> torch.device:
    """
    The device of ``train.device``; "auto" is CUDA's current device if CUDA is available, else the CPU.

    Raises:
        ConfigError: neither "auto", "cpu" nor "cuda", or "cuda" without a GPU.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(
            f"train.device is {name!r}, expected 'auto', 'cuda' or 'cpu' (CUDA_VISIBLE_DEVICES picks a GPU)."
        )
    if name == "cuda" and not available:
        raise ConfigError("train.device is 'cuda', but torch sees no GPU: set train.device=auto or =cpu.")
    return torch.device(name)


def amp_dtype(amp: Mapping) -> torch.dtype | None:
    """
    The dtype of ``train.amp`` (``enabled``, ``dtype``), or None if it is off.

    Raises:
        ConfigError: a dtype other than "float16" and "bfloat16".
    """
    if amp["dtype"] not in _AMP_DTYPES:
        raise ConfigError(f"train.amp.dtype is {amp['dtype']!r}, expected one of {', '.join(_AMP_DTYPES)}.")
    return _AMP_DTYPES[amp["dtype"]] if amp["enabled"] else None


def check_image_format(cfg: DictConfig, model: nn.Module) -> None:
    """
    Check that the data mappers read images in the channel order that the model expects.

    Raises:
        ConfigError: they do not; the message has both values and keys.
    """
    expected = getattr(model, "input_format", None)
    for split in ("train", "test"):
        key = f"dataloader.{split}.mapper.image_format"
        found = OmegaConf.select(cfg, key, default=None)
        if expected is not None and found is not None and found != expected:
            raise ConfigError(f"{key} is {found!r}, but model.input_format is {expected!r}: make them equal.")


def create_ddp_model(model: nn.Module, device: torch.device, **kwargs: object) -> nn.Module:
    """
    :func:`detectron2.engine.defaults.create_ddp_model`, for the CPU as well: Detectron2's passes a GPU's index.

    Args:
        model: on ``device``; returned as it is if there is one process.
        device: where it trains.
        kwargs: ``train.ddp``: ``fp16_compression`` and the arguments of ``DistributedDataParallel``;
            ``timeout_minutes`` is for the launcher.
    """
    kwargs.pop("timeout_minutes", None)
    if device.type == "cpu":
        kwargs["device_ids"] = None
    return d2_engine.create_ddp_model(model, **kwargs)


def default_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """:func:`detectron2.engine.default_writers`, without TensorBoard's if the package is not installed."""
    writers = d2_engine.default_writers(output_dir, max_iter)
    if find_spec("tensorboard") is None:
        logger.warning("tensorboard is not installed: metrics go to the console and metrics.json only.")
        writers = [writer for writer in writers if not isinstance(writer, TensorboardXWriter)]
    return writers
