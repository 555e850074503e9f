"""From a config to a running trainer: device, precision, wrapping, writers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from detectron2 import engine as d2_engine
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage
from omegaconf import DictConfig
from torch import nn

from d2kd.config.nodes import made

__all__ = [
    "ConfigError",
    "amp_dtype",
    "create_ddp_model",
    "default_writers",
    "own_writers",
    "resolve_device",
]

logger = logging.getLogger(f"detectron2.{__name__}")  # which any script that trains sets up

_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class ConfigError(ValueError):
    """A config or command line that cannot run; its message says what to change and needs no traceback."""


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


class _ImageRemover(EventWriter):
    """Takes images out of the event storage, as TensorBoard's writer does."""

    def write(self) -> None:
        get_event_storage().clear_images()


def default_writers(output_dir: str, max_iter: int, more: Sequence[EventWriter] = ()) -> list[EventWriter]:
    """
    :func:`detectron2.engine.default_writers`, without TensorBoard's if the package is not installed.

    Args:
        more: further writers. They come before TensorBoard's, which takes the images away.
    """
    writers = d2_engine.default_writers(output_dir, max_iter)
    if find_spec("tensorboard") is None:
        logger.warning("tensorboard is not installed: metrics go to the console and metrics.json only.")
        writers = [*(writer for writer in writers if not isinstance(writer, TensorboardXWriter)), _ImageRemover()]
    return [*writers[:-1], *more, writers[-1]]


def own_writers(cfg: DictConfig) -> list[EventWriter]:
    """
    What ``train.writers`` makes.

    Raises:
        ConfigError: one is no ``EventWriter``.
        ValueError: one cannot be made.
    """
    writers: list[EventWriter] = []
    try:
        for index, node in enumerate(cfg.train.get("writers") or ()):
            writer = made(node, f"train.writers[{index}]")
            if not isinstance(writer, EventWriter):
                raise ConfigError(
                    f"train.writers[{index}] makes a {type(writer).__name__}, expected an EventWriter of Detectron2."
                )
            writers.append(writer)
    except Exception:
        for writer in writers:  # a tracker that was told that a run begins
            writer.close()
        raise
    return writers
