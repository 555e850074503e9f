"""
Training and evaluation of a LazyConfig, like Detectron2's tools/lazyconfig_train_net.py but as functions.

Every rank calls them. Before that the caller calls :func:`check_config` and Detectron2's ``default_setup``, which seeds
the process and sets up logs and ``train.output_dir``, inside Detectron2's ``launch`` if there are several ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from d2kd.config.nodes import target_of
from d2kd.data import build_train_loader
from d2kd.engine.defaults import (
    ConfigError,
    amp_dtype,
    check_image_format,
    create_ddp_model,
    default_writers,
    resolve_device,
)
from d2kd.engine.evaluation import evaluate, teacher_predictor
from d2kd.engine.hooks import BestCheckpointer, OptimizerWatch, SeedEachIteration, TrainingCost
from d2kd.engine.trainer import Trainer
from d2kd.modeling import DistilledDetector

__all__ = ["do_eval", "do_test", "do_train"]

# Below Detectron2's logger, which any script that trains sets up.
logger = logging.getLogger(f"detectron2.{__name__}")

Results = dict[str, Any]  # task -> {metric -> value}; empty on all ranks but the main one


def do_train(cfg: DictConfig, *, resume: bool = False, check_teacher: bool = False) -> Results:
    """
    Train ``cfg.model`` up to iteration ``cfg.train.max_iter`` and evaluate it. The teacher is loaded before data is
    read.

    Args:
        cfg: model, optimizer, lr_multiplier, dataloader.{train,test,evaluator} and train, as in configs/common; not
            changed.
        resume: continue from the last checkpoint in ``train.output_dir``, if there is one.
        check_teacher: evaluate the teacher first, on the student's test data, and log its AP.

    Returns:
        the results of the last evaluation, as of :func:`d2kd.engine.evaluate`.

    Raises:
        ConfigError: the mappers' channel order is not the model's, or there is no teacher to check.
        ValueError, FileNotFoundError: the teacher cannot be loaded or does not fit the student.
        FloatingPointError: a loss or the gradient's norm is not finite; the weights are those before this step.
    """
    cfg = deepcopy(cfg)
    train = cfg.train
    model = _build_model(cfg, load_teacher=True)
    logger.info("Model:\n%s", model)
    teacher_ap = _teacher_ap(cfg, model) if check_teacher else None

    cfg.optimizer.params.model = model  # the student's parameters: the teacher is not in its module tree
    trainer = Trainer(
        create_ddp_model(model, resolve_device(train.device), **train.ddp),
        None,  # the loader follows when the first iteration is known
        instantiate(cfg.optimizer),
        amp_dtype=amp_dtype(train.amp),
        clip_grad=train.clip_grad,
        accumulate=train.accumulate,
        output_dir=train.output_dir,
        **train.trainer,
    )
    results: Results = {}

    def test() -> Results:
        results.clear()
        results.update(do_test(cfg, model))
        return results

    checkpointer = DetectionCheckpointer(trainer.model, train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            TrainingCost(),
            SeedEachIteration(train.seed),
            OptimizerWatch(model, trainer.optimizer),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.EvalHook(train.eval_period, test),
        ]
    )
    if comm.is_main_process():
        trainer.register_hooks(
            [
                BestCheckpointer(train.eval_period, model, train.output_dir, train.best_metric),
                hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer),
                hooks.PeriodicWriter(default_writers(train.output_dir, train.max_iter), period=train.log_period),
            ]
        )

    checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
    # The checkpoint has the iteration that was just finished.
    start_iter = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    if start_iter >= train.max_iter:
        logger.info("All of train.max_iter=%d iterations are done: nothing left to train", train.max_iter)
        test()
    else:
        trainer.reset_data_loader(lambda: _build_train_loader(cfg, start_iter))
        trainer.train(start_iter, train.max_iter)
    if teacher_ap is not None:
        logger.info("teacher AP %s, student AP %s", teacher_ap, _ap(results))
    return results


def do_eval(cfg: DictConfig, *, resume: bool = False, check_teacher: bool = False) -> Results:
    """
    Evaluate ``train.init_checkpoint``. The teacher's files are read only if it is evaluated too.

    Args:
        cfg: model, dataloader.{test,evaluator}, train (see configs/common).
        resume: evaluate the last checkpoint in ``train.output_dir`` instead, if there is one.
        check_teacher: evaluate the teacher first, and log its AP.

    Returns:
        the results, as of :func:`d2kd.engine.evaluate`.

    Raises:
        ConfigError: there are no weights to evaluate or no teacher to check, or the mappers' channel order is not the
            model's.
        ValueError, FileNotFoundError: the teacher cannot be loaded.
    """
    model = _build_model(cfg, load_teacher=check_teacher)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir)
    if not cfg.train.init_checkpoint and not (resume and checkpointer.has_checkpoint()):
        raise ConfigError(
            "train.init_checkpoint is empty, expected the weights to evaluate: add train.init_checkpoint=PATH, or "
            f"--resume for the last checkpoint in train.output_dir={cfg.train.output_dir}."
        )
    teacher_ap = _teacher_ap(cfg, model) if check_teacher else None
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    results = do_test(cfg, model)
    if teacher_ap is not None:
        logger.info("teacher AP %s, student AP %s", teacher_ap, _ap(results))
    return results


def do_test(cfg: DictConfig, model: nn.Module | Callable) -> Results:
    """
    Evaluate ``model`` on ``cfg.dataloader.test`` with ``cfg.dataloader.evaluator``, and log the results.

    Args:
        cfg: only ``dataloader`` is read.
        model: see :func:`d2kd.engine.evaluate`.

    Returns:
        the results, as of :func:`d2kd.engine.evaluate`.
    """
    results = evaluate(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    print_csv_format(results)
    return results


def _teacher_ap(cfg: DictConfig, model: nn.Module) -> str:
    predictor = teacher_predictor(model)
    logger.info("Evaluating the teacher")
    ap = _ap(do_test(cfg, predictor))
    logger.info("teacher AP %s", ap)
    return ap


def _ap(results: Results) -> str:
    return f"{results['bbox']['AP']:.2f}" if "bbox" in results else "unknown"


def _build_model(cfg: DictConfig, *, load_teacher: bool) -> nn.Module:
    model = instantiate(cfg.model)
    check_image_format(cfg, model)
    if load_teacher and isinstance(model, DistilledDetector):
        model.load_teacher()
    return model.to(resolve_device(cfg.train.device))


def _build_train_loader(cfg: DictConfig, start_iter: int) -> Iterable:
    node = cfg.dataloader.train
    if target_of(node) is build_train_loader:
        node.start = start_iter * node.total_batch_size
    elif start_iter > 0:
        logger.warning(
            "dataloader.train is not d2kd.data.build_train_loader: its data order starts anew, so this run differs "
            "from one that was not interrupted."
        )
    return instantiate(node)
