"""Training and evaluating the model of a LazyConfig."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from d2kd.data.loader import build_train_loader
from d2kd.engine.defaults import (
    ConfigError,
    amp_dtype,
    check_image_format,
    create_ddp_model,
    default_writers,
    resolve_device,
)
from d2kd.engine.evaluation import evaluate, teacher_predictor
from d2kd.engine.hooks import BestCheckpointer, SeedEachIteration, TrainingCost
from d2kd.engine.trainer import Trainer

__all__ = ["do_eval", "do_test", "do_train"]

logger = logging.getLogger(__name__)


def do_test(cfg: DictConfig, model: Any) -> dict[str, Any]:
    """Evaluate ``model`` (or a callable on batches) on ``cfg.dataloader.test``; empty off the main rank."""
    results = evaluate(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    print_csv_format(results)
    return results


def _ap(results: dict[str, Any]) -> str:
    return f"{results['bbox']['AP']:.2f}" if "bbox" in results else "unknown"


def _check_teacher(cfg: DictConfig, model: nn.Module) -> str:
    predictor = teacher_predictor(model)
    logger.info("Evaluating the teacher")
    ap = _ap(do_test(cfg, predictor))
    logger.info("teacher AP %s", ap)
    return ap


def _build_model(cfg: DictConfig, *, with_teacher: bool) -> nn.Module:
    model = instantiate(cfg.model)
    check_image_format(cfg, model)
    # First of all that can fail: a missing teacher is known before data is read.
    if with_teacher and hasattr(model, "load_teacher"):
        model.load_teacher()
    return model.to(resolve_device(cfg.train.device))


def _build_train_loader(cfg: DictConfig, start_iter: int) -> Any:
    node = cfg.dataloader.train
    target = locate(node._target_) if isinstance(node._target_, str) else node._target_
    if target is build_train_loader:
        node.start = start_iter * node.total_batch_size
    elif start_iter > 0:
        logger.warning(
            "dataloader.train is not d2kd.data.loader.build_train_loader: its data order starts anew, so "
            "this run differs from one that was not interrupted."
        )
    return instantiate(node)


def do_train(cfg: DictConfig, *, resume: bool = False, check_teacher: bool = False) -> dict[str, Any]:
    """
    Train ``cfg.model`` up to iteration ``cfg.train.max_iter`` and evaluate it.

    Args:
        cfg: model, optimizer, lr_multiplier, dataloader.{train,test,evaluator}, train (see configs/common).
        resume: go on from the last checkpoint in ``cfg.train.output_dir``, if there is one.
        check_teacher: evaluate the teacher first, on the student's test data, and log its AP.

    Returns:
        The last evaluation's results (empty off the main rank).
    """
    train, output_dir = cfg.train, cfg.train.output_dir
    model = _build_model(cfg, with_teacher=True)
    logger.info("Model:\n%s", model)
    teacher_ap = _check_teacher(cfg, model) if check_teacher else None

    cfg.optimizer.params.model = model  # the student's parameters: the teacher is not in its module tree
    optimizer = instantiate(cfg.optimizer)
    trainer = Trainer(
        create_ddp_model(model, resolve_device(train.device), **train.ddp),
        None,  # the loader comes when the first iteration is known
        optimizer,
        amp_dtype=amp_dtype(train.amp),
        clip_grad=train.clip_grad,
    )
    results: dict[str, Any] = {}

    def test() -> dict[str, Any]:
        results.clear()
        results.update(do_test(cfg, model))
        return results

    checkpointer = DetectionCheckpointer(trainer.model, output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            TrainingCost(),
            SeedEachIteration(train.seed),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.EvalHook(train.eval_period, test),
        ]
    )
    if comm.is_main_process():
        trainer.register_hooks(
            [
                BestCheckpointer(train.eval_period, model, output_dir, train.best_metric),
                hooks.PeriodicCheckpointer(checkpointer, **train.checkpointer),
                hooks.PeriodicWriter(default_writers(output_dir, train.max_iter), period=train.log_period),
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


def do_eval(cfg: DictConfig, *, resume: bool = False, check_teacher: bool = False) -> dict[str, Any]:
    """Evaluate ``train.init_checkpoint``, or with ``--resume`` the last one in ``train.output_dir``."""
    model = _build_model(cfg, with_teacher=check_teacher)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir)
    if not cfg.train.init_checkpoint and not (resume and checkpointer.has_checkpoint()):
        raise ConfigError(
            "--eval-only found no weights to evaluate: add train.init_checkpoint=PATH, or --resume for the "
            f"last checkpoint in train.output_dir={cfg.train.output_dir}."
        )
    teacher_ap = _check_teacher(cfg, model) if check_teacher else None
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    results = do_test(cfg, model)
    if teacher_ap is not None:
        logger.info("teacher AP %s, student AP %s", teacher_ap, _ap(results))
    return results
