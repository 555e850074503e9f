"""What is checked of a run's config before anything is built or written."""

from __future__ import annotations

import math
import os

import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from d2kd.checkpoint import WholeCheckpointer
from d2kd.config.nodes import target_of, targets
from d2kd.data import build_train_loader
from d2kd.engine.defaults import ConfigError, amp_dtype, resolve_device
from d2kd.engine.ema import EMA_PREFIX, check_ema
from d2kd.engine.trainer import check_clip_grad
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.state import build_losses
from d2kd.structures import kept_random_state

__all__ = ["check_config"]

_REQUIRED = "model optimizer lr_multiplier dataloader.train dataloader.test dataloader.evaluator".split()
_REQUIRED_TRAIN = (
    "output_dir init_checkpoint max_iter seed device amp.enabled amp.dtype clip_grad accumulate ema ddp trainer "
    "checkpointer best_metric eval_period log_period"
).split()
#: Parts that have keys and values, and no ``_target_``.
_GROUPS = ("train", "train.amp", "train.ddp", "train.trainer", "train.checkpointer", "dataloader")
_LOADERS = (build_train_loader, build_detection_train_loader, build_detection_test_loader)
#: Keys whose values are whole numbers, and the least value that makes sense.
_WHOLE_NUMBERS = {
    "train.seed": 0,
    "train.max_iter": 1,
    "train.accumulate": 1,
    "train.eval_period": 0,  # after the last iteration only
    "train.log_period": 1,
    "train.vis_period": 0,
    "train.checkpointer.period": 1,
    "train.checkpointer.max_to_keep": 1,
    "train.trainer.gather_metric_period": 1,
    "dataloader.train.total_batch_size": 1,
    "dataloader.train.num_workers": 0,
    "dataloader.test.num_workers": 0,
    "dataloader.test.batch_size": 1,
}
_OPTIONAL = {"train.checkpointer.max_to_keep"}  # null: all
_MISSING = object()


def check_config(cfg: DictConfig, *, resume: bool = False, evaluation: bool = False) -> None:
    """
    Check a run's config before anything is built or written.

    Args:
        cfg: see :func:`d2kd.engine.do_train`.
        resume: the run continues from the last checkpoint in ``train.output_dir``; if there is one,
            ``train.init_checkpoint`` is not read and need not exist.
        evaluation: nothing is trained, so that the teacher's code need not be there.

    Raises:
        ConfigError: missing keys or nodes, a node that makes nothing, a ``_target_`` that cannot be imported, no
            mapper, a ``train.output_dir``, ``train.ema`` or ``train.best_metric`` that is none, a number of iterations,
            period, seed or learning rate that is none, an unknown device or dtype, float16 on a CPU, several CPU
            processes beside a visible GPU, or distillation losses whose weights are all 0.
        ValueError, TypeError: a loss that cannot be built, or a ``train.clip_grad`` that is none.
        FileNotFoundError: ``train.init_checkpoint`` is a path, and there is no such file.
    """
    keys = [*_REQUIRED, *(f"train.{key}" for key in _REQUIRED_TRAIN)]
    missing = [key for key in keys if OmegaConf.select(cfg, key, default=_MISSING) is _MISSING]
    _check_groups(cfg)
    if missing:
        lacking = dict.fromkeys(
            next(part for part in _parents(key) if OmegaConf.select(cfg, part, default=_MISSING) in (_MISSING, None))
            for key in missing
        )
        raise ConfigError(
            f"The config lacks {', '.join(lacking)}: configs/common/train.py has every key of `train`, and "
            "configs/common the other parts."
        )
    train = cfg.train
    _check_nodes(cfg, evaluation)
    if not (isinstance(train.output_dir, str) and train.output_dir):
        raise ConfigError(f"train.output_dir is {train.output_dir!r}, expected the path of a folder.")
    if "://" in train.output_dir:
        raise ConfigError(f"train.output_dir is {train.output_dir!r}, a URL, expected the path of a local folder.")
    if not (isinstance(train.best_metric, str) and train.best_metric):
        raise ConfigError(f"train.best_metric is {train.best_metric!r}, expected a metric's name, such as 'bbox/AP'.")
    check_ema(train.ema)
    writers = train.get("writers") or ()
    nodes = not isinstance(writers, str) and all(isinstance(x, DictConfig) and "_target_" in x for x in writers)
    if not (nodes and (isinstance(writers, ListConfig) or writers == ())):
        raise ConfigError(f"train.writers is {writers!r}, expected a list of nodes of EventWriters, [L(CLASS)(...)].")
    if train.best_metric.startswith(EMA_PREFIX) and train.ema is None:
        raise ConfigError(
            f"train.best_metric is {train.best_metric!r}, a metric of averaged weights, but train.ema is null: set "
            "train.ema={decay: 0.999}."
        )
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
        if not isinstance(cfg.model.losses, DictConfig):
            found = "a list" if isinstance(cfg.model.losses, ListConfig) else repr(cfg.model.losses)
            raise ConfigError(
                f"model.losses is {found}, expected losses by name, or null; --method takes the losses of "
                "a method, and so does distill(..., method=NAME)."
            )
        _check_losses(cfg.model.losses)


def _parents(key: str) -> list[str]:
    """``"a.b"`` -> ``["a", "a.b"]``."""
    parts = key.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _check_groups(cfg: DictConfig) -> None:
    for key in _GROUPS:
        value = OmegaConf.select(cfg, key, default=_MISSING)
        if value is None and "." in key:
            raise ConfigError(f"{key} is null, expected its keys and values, as in configs/common/train.py.")
        if not (value is _MISSING or value is None or isinstance(value, DictConfig)):
            raise ConfigError(f"{key} is {value!r}, expected its keys and values, as in configs/common.")


def _check_nodes(cfg: DictConfig, evaluation: bool) -> None:
    """See that each node of :data:`_REQUIRED` makes something, and that what it names can be imported."""
    for path, target in targets(cfg.train.get("writers"), "train.writers"):
        _check_target(path, target)
    for key in _REQUIRED:
        node = OmegaConf.select(cfg, key)
        if node is None:
            raise ConfigError(f"{key} is null, expected a node with its arguments.")
        several = key == "dataloader.evaluator" and isinstance(node, ListConfig)
        if isinstance(node, (str, int, float, ListConfig)) and not several:
            raise ConfigError(f"{key} is {node!r}, expected a node, L(CLASS)(...).")
        if isinstance(node, DictConfig) and "_target_" not in node:
            raise ConfigError(f"{key} has no _target_, so that it makes nothing: write L(CLASS)(...).")
        for path, target in targets(node, key):
            if evaluation and path.startswith("model.teacher."):
                continue
            _check_target(path, target)
    if target_of(cfg.model) is DistilledDetector and isinstance(cfg.model.get("student"), (type(None), str, int)):
        raise ConfigError(f"model.student is {cfg.model.get('student')!r}, expected the node of a detector.")
    if isinstance(cfg.optimizer, DictConfig) and not isinstance(cfg.optimizer.get("params"), DictConfig):
        raise ConfigError(
            f"optimizer.params is {cfg.optimizer.get('params')!r}, expected a node that picks the model's parameters, "
            "such as L(get_default_optimizer_params)()."
        )
    for split in ("train", "test"):
        loader = cfg.dataloader[split]
        if target_of(loader) in _LOADERS and not _may_be_called(loader.get("mapper")):
            raise ConfigError(
                f"dataloader.{split}.mapper is {loader.get('mapper')!r}, expected what makes a sample of an entry of "
                "the dataset, such as L(DatasetMapper)(...)."
            )


def _check_target(path: str, node: DictConfig) -> None:
    try:
        target_of(node)
    except ImportError as error:
        raise ConfigError(
            f"{path}._target_ is {node._target_!r}, which cannot be imported: correct the name, or install its package."
        ) from error


def _may_be_called(mapper: object) -> bool:
    return "_target_" in mapper if isinstance(mapper, DictConfig) else callable(mapper)


def _check_losses(nodes: DictConfig) -> None:
    with kept_random_state():
        losses = build_losses({str(name): node for name, node in nodes.items()})
    if losses and not any(loss.weight > 0 for loss in losses.values()):
        raise ConfigError(
            f"The weights of all model.losses ({', '.join(losses)}) are 0, so that nothing would be distilled: set a "
            "weight, or model.losses=null to train the student alone."
        )
