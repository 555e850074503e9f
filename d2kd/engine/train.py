"""
Training and evaluation of a LazyConfig, like Detectron2's tools/lazyconfig_train_net.py but as functions.

Every rank calls them. Before that the caller calls :func:`check_config` and Detectron2's ``default_setup``, which seeds
the process and sets up logs and ``train.output_dir``, inside Detectron2's ``launch`` if there are several ranks.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path

import torch
from detectron2.engine import hooks
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from d2kd.checkpoint import (
    DamagedError,
    FittingCheckpointer,
    LayoutError,
    WholeCheckpointer,
    check_finite,
    load_strictly,
)
from d2kd.config.nodes import dataset_names, made, target_of
from d2kd.data import build_train_loader
from d2kd.engine.check_data import check_classes, check_evaluation, check_image_format, check_metric
from d2kd.engine.console import Console, ProgressLine, log_summary
from d2kd.engine.defaults import (
    ConfigError,
    amp_dtype,
    create_ddp_model,
    default_writers,
    own_writers,
    resolve_device,
)
from d2kd.engine.ema import EMA_PREFIX, WeightEMA
from d2kd.engine.evaluation import Results, evaluate, results_line, teacher_predictor, write_evaluation
from d2kd.engine.hooks import (
    BestCheckpointer,
    EvalHook,
    OptimizerWatch,
    PeriodicCheckpointer,
    SeedEachIteration,
    TrainingCost,
)
from d2kd.engine.loaders import make_evaluator, make_loader
from d2kd.engine.ranks import share_norm_statistics
from d2kd.engine.resume import ResumeError, check_same_start, say_what_fits
from d2kd.engine.run_folder import tidy_run_folder
from d2kd.engine.sheet import sheet_writers
from d2kd.engine.stop import StopOnSignal
from d2kd.engine.trainer import Trainer
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.agreement import raised_on_all_ranks

__all__ = ["do_eval", "do_test", "do_train"]

# Below Detectron2's logger, which any script that trains sets up.
logger = logging.getLogger(f"detectron2.{__name__}")


def do_train(
    cfg: DictConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    check_teacher: bool = False,
    console: Console | None = None,
) -> Results:
    """
    Train ``cfg.model`` up to iteration ``cfg.train.max_iter`` and evaluate it. The teacher is loaded before data is
    read.

    Args:
        cfg: model, optimizer, lr_multiplier, dataloader.{train,test,evaluator} and train, as in configs/common; not
            changed.
        resume: continue from the last checkpoint in ``train.output_dir``, if there is one.
        overwrite: delete the files of another run in ``train.output_dir`` before the first step.
        check_teacher: evaluate the teacher first, on the student's test data, and log its AP.
        console: of this process, whose last line says how far the run is if it is a terminal.

    Returns:
        the results of the last evaluation, as of :func:`d2kd.engine.evaluate`; with ``train.ema``, those of the
        averaged weights as "ema".

    Raises:
        ConfigError: the mappers' channels are not the model's, the data have more classes than it, there is no teacher
            to check, or the evaluator does not return ``train.best_metric``.
        LayoutError: the weights that the run begins with are not finite.
        ResumeError: the last checkpoint has other parameters than the model.
        MisfitError: ``train.init_checkpoint`` has no weight of the model.
        ValueError, FileNotFoundError: a node of the config cannot be made, or the teacher cannot be loaded or does not
            fit the student.
        FloatingPointError: a loss or the gradient's norm is not finite; the weights are those before this step.
    """
    cfg = deepcopy(cfg)
    train = cfg.train
    with raised_on_all_ranks():  # a file that one machine lacks, for instance
        model = _build_model(cfg, load_teacher=True)
        check_evaluation(cfg)
    logger.info("Model:\n%s", model)
    log_summary(cfg, model)
    teacher = _evaluate_teacher(cfg, model) if check_teacher else None

    cfg.optimizer.params.model = model  # the student's parameters: the teacher is not in its module tree
    trainer = Trainer(
        create_ddp_model(model, resolve_device(train.device), **train.ddp),
        None,  # the loader follows when the first iteration is known
        made(cfg.optimizer, "optimizer"),
        amp_dtype=amp_dtype(train.amp),
        clip_grad=train.clip_grad,
        accumulate=train.accumulate,
        output_dir=train.output_dir,
        **train.trainer,
    )
    results: Results = {}
    checkpointer = FittingCheckpointer(
        trainer.model,
        train.output_dir,
        on_load=lambda misfit: say_what_fits(misfit, model, train.init_checkpoint, goes_on),
        trainer=trainer,
    )
    goes_on = resume and checkpointer.has_checkpoint()
    stop = StopOnSignal(checkpointer)
    ema = WeightEMA(model, train.ema.decay, train.output_dir) if train.get("ema") else None

    def test() -> Results:
        results.clear()
        with stop.evaluation():
            averaged: Results = {}
            if ema is not None:  # first: files that an evaluator writes are then those of the latest weights
                share_norm_statistics(ema.model)
                logger.info("Evaluating the averaged weights (train.ema)")
                averaged = do_test(cfg, ema.model)
            share_norm_statistics(model)
            results.update(do_test(cfg, model))
            if averaged:
                results[EMA_PREFIX.rstrip("/")] = averaged
        if results:
            logger.info("After %d iterations: %s", min(trainer.iter + 1, trainer.max_iter), results_line(results))
        with raised_on_all_ranks():
            check_metric(train.best_metric, results)
        return results

    timing = [
        hooks.IterationTimer(),
        ema,
        TrainingCost(),
        SeedEachIteration(train.seed),
        OptimizerWatch(model, trainer.optimizer),
        hooks.LRScheduler(scheduler=made(cfg.lr_multiplier, "lr_multiplier")),
    ]
    saving = PeriodicCheckpointer(checkpointer, **train.checkpointer)
    evaluating = EvalHook(train.eval_period, test, train.output_dir, train.best_metric)
    best = ema.model if ema is not None and train.best_metric.startswith(EMA_PREFIX) else model
    keeping = BestCheckpointer(train.eval_period, best, train.output_dir, train.best_metric)
    trainer.register_hooks([*timing, saving, stop, evaluating, keeping])
    trainer.register_hooks(sheet_writers(cfg, model))

    with raised_on_all_ranks():
        try:
            checkpointer.resume_or_load(train.init_checkpoint, resume=resume)
            check_finite(model, checkpointer.get_checkpoint_file() if goes_on else train.init_checkpoint)
        except (DamagedError, LayoutError, FileNotFoundError) as error:
            if goes_on:
                raise ResumeError(f"--resume: {error}") from error
            raise type(error)(f"train.init_checkpoint: {error}") from error
    # The checkpoint has the iteration that was just finished.
    start_iter = trainer.iter + 1 if goes_on else 0
    check_same_start(start_iter, train.output_dir)
    done = start_iter >= train.max_iter
    if not done:
        with raised_on_all_ranks():
            trainer.reset_data_loader(lambda: _build_train_loader(cfg, start_iter))
            check_classes(cfg, model)
    with raised_on_all_ranks():
        if comm.is_main_process():
            anew = overwrite and not resume
            tidy_run_folder(Path(train.output_dir), start_iter, overwrite=anew, evaluated_again=done)
            writers = default_writers(train.output_dir, train.max_iter, own_writers(cfg))
            progress = ProgressLine(console, train.best_metric) if console is not None and console.rewrites else None
            trainer.register_hooks([hooks.PeriodicWriter(writers, period=train.log_period), progress])
    if done:
        logger.info("All of train.max_iter=%d iterations are done: nothing left to train", train.max_iter)
        if start_iter == train.max_iter and Path(checkpointer.get_checkpoint_file()).name != "model_final.pth":
            checkpointer.save("model_final", iteration=trainer.iter)  # it was damaged, or not reached
        _evaluate_last(trainer, start_iter)
    else:
        # TorchScript optimises a function's backward after its first calls in a process (fvcore's focal loss), so that
        # a resumed run would differ in the last bits. Without that the loss is as fast.
        with torch.jit.optimized_execution(False):
            trainer.train(start_iter, train.max_iter)
    if teacher is not None:
        logger.info("teacher AP %s, student AP %s", _ap(teacher), _ap(results))
    return results


def do_eval(
    cfg: DictConfig, *, resume: bool = False, check_teacher: bool = False, allow_partial: bool = False
) -> Results:
    """
    Evaluate ``train.init_checkpoint``, and write ``evaluation.json`` into ``train.output_dir``: which weights, on which
    dataset, with which results. The teacher's files are read only if it is evaluated too.

    Args:
        cfg: model, dataloader.{test,evaluator}, train (see configs/common).
        resume: evaluate the last checkpoint in ``train.output_dir`` instead, if there is one.
        check_teacher: evaluate the teacher first, and log its AP.
        allow_partial: evaluate weights that are no complete checkpoint of the model; what they lack is random.

    Returns:
        the results, as of :func:`d2kd.engine.evaluate`.

    Raises:
        MisfitError: the weights do not fit the model, and ``allow_partial`` is not set.
        ConfigError: there are no weights to evaluate or no teacher to check, or the mappers' channels are not the
            model's.
        ValueError, FileNotFoundError: the teacher cannot be loaded.
    """
    model = _build_model(cfg, load_teacher=check_teacher)
    checkpointer = WholeCheckpointer(model, cfg.train.output_dir)
    if not cfg.train.init_checkpoint and not (resume and checkpointer.has_checkpoint()):
        raise ConfigError(
            "train.init_checkpoint is empty, expected the weights to evaluate: add train.init_checkpoint=PATH, or "
            f"--resume for the last checkpoint in train.output_dir={cfg.train.output_dir}."
        )
    teacher = _evaluate_teacher(cfg, model) if check_teacher else None
    goes_on = resume and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if goes_on else cfg.train.init_checkpoint
    misfit = load_strictly(
        model,
        path,
        refusal=f"{path} is no complete checkpoint of the model",
        way_out="--allow-partial evaluates it all the same, with random values for what it lacks",
        absent=f"The weights to evaluate are {path!r}, but there is no such file.",
        key="--resume" if goes_on else "train.init_checkpoint",
        allow_partial=allow_partial,
    ).misfit
    if misfit:
        logger.warning("Evaluated with weights that do not fit the model (--allow-partial): %s", misfit)
    results = do_test(cfg, model)
    if comm.is_main_process():
        logger.info("%s: %s", path, results_line(results))
        about = {"weights": path, "complete": not misfit, "datasets": dataset_names(cfg, "test")}
        evaluation = about | {"results": results}
        write_evaluation(cfg.train.output_dir, evaluation | ({} if teacher is None else {"teacher": teacher}))
    if teacher is not None:
        logger.info("teacher AP %s, student AP %s", _ap(teacher), _ap(results))
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
    printed = io.StringIO()  # pycocotools prints its tables
    try:
        with redirect_stdout(printed):
            results = evaluate(model, make_loader(cfg, "test"), make_evaluator(cfg))
    finally:
        if printed.getvalue():
            logger.info("The evaluation printed:\n%s", printed.getvalue())
    print_csv_format(results)
    return results


def _evaluate_last(trainer: Trainer, iteration: int) -> None:
    """What a run of ``iteration`` steps does after the last: it may have been killed before, or in the middle."""
    with EventStorage(iteration) as trainer.storage:
        trainer.iter = trainer.start_iter = trainer.max_iter = iteration
        trainer.before_train()
        trainer.after_train()


def _evaluate_teacher(cfg: DictConfig, model: nn.Module) -> Results:
    predictor = teacher_predictor(model)
    logger.info("Evaluating the teacher")
    results = do_test(cfg, predictor)
    logger.info("teacher AP %s", _ap(results))
    return results


def _ap(results: Results) -> str:
    return f"{results['bbox']['AP']:.2f}" if "bbox" in results else "unknown"


def _build_model(cfg: DictConfig, *, load_teacher: bool) -> nn.Module:
    model = made(cfg.model, "model")
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
    return make_loader(cfg, "train")
