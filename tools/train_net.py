#!/usr/bin/env python3
"""
Train or evaluate the model of a LazyConfig file, distilled or plain. Like Detectron2's
tools/lazyconfig_train_net.py, with a seed, CPU or GPU, mixed precision on both, gradient clipping, a teacher
that is checked, a data order that resumes, and the best checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser, default_setup, hooks, launch
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch import nn

from d2kd import list_methods
from d2kd.data.loader import build_train_loader
from d2kd.engine import (
    BestCheckpointer,
    ConfigError,
    SeedEachIteration,
    Trainer,
    TrainingCost,
    amp_dtype,
    check_config,
    check_image_format,
    create_ddp_model,
    default_writers,
    evaluate,
    resolve_device,
    teacher_predictor,
)

logger = logging.getLogger("d2kd.train_net")

EXAMPLES = """
Examples:

  Distil, then see what the teacher and the student reach:
    $ train_net.py --config-file configs/digits/fcos_crosskd.py --check-teacher

  The same run without distillation (`model.losses={}` would merge, and change nothing):
    $ train_net.py --config-file configs/digits/fcos_crosskd.py model.losses=null train.output_dir=output/a

  On 8 GPUs; continue where it stopped; evaluate its best weights:
    $ train_net.py --config-file FILE --num-gpus 8
    $ train_net.py --config-file FILE --num-gpus 8 --resume
    $ train_net.py --config-file FILE --eval-only train.init_checkpoint=output/model_best.pth

Options come before the key=value overrides. Without a GPU, --num-gpus is the number of CPU processes.
"""


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


def _build_model(cfg: DictConfig, args: argparse.Namespace) -> nn.Module:
    model = instantiate(cfg.model)
    check_image_format(cfg, model)
    # First of all that can fail: a missing teacher is known before data is read.
    if hasattr(model, "load_teacher") and (args.check_teacher or not args.eval_only):
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


def do_train(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """
    Train ``cfg.model`` up to iteration ``cfg.train.max_iter`` and evaluate it.

    Args:
        cfg: model, optimizer, lr_multiplier, dataloader.{train,test,evaluator}, train (see configs/common).
        args: ``resume`` and ``check_teacher`` of the command line.

    Returns:
        The last evaluation's results (empty off the main rank).
    """
    train, output_dir = cfg.train, cfg.train.output_dir
    model = _build_model(cfg, args)
    logger.info("Model:\n%s", model)
    teacher_ap = _check_teacher(cfg, model) if args.check_teacher else None

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

    checkpointer.resume_or_load(train.init_checkpoint, resume=args.resume)
    # The checkpoint has the iteration that was just finished.
    start_iter = trainer.iter + 1 if args.resume and checkpointer.has_checkpoint() else 0
    if start_iter >= train.max_iter:
        logger.info("All of train.max_iter=%d iterations are done: nothing left to train", train.max_iter)
        test()
    else:
        trainer.reset_data_loader(lambda: _build_train_loader(cfg, start_iter))
        trainer.train(start_iter, train.max_iter)
    if teacher_ap is not None:
        logger.info("teacher AP %s, student AP %s", teacher_ap, _ap(results))
    return results


def do_eval(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate ``train.init_checkpoint``, or with ``--resume`` the last one in ``train.output_dir``."""
    model = _build_model(cfg, args)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir)
    if not cfg.train.init_checkpoint and not (args.resume and checkpointer.has_checkpoint()):
        raise ConfigError(
            "--eval-only found no weights to evaluate: add train.init_checkpoint=PATH, or --resume for the "
            f"last checkpoint in train.output_dir={cfg.train.output_dir}."
        )
    teacher_ap = _check_teacher(cfg, model) if args.check_teacher else None
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    results = do_test(cfg, model)
    if teacher_ap is not None:
        logger.info("teacher AP %s, student AP %s", teacher_ap, _ap(results))
    return results


def main(args: argparse.Namespace) -> dict[str, Any]:
    """One process of the run that the command line asks for."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    check_config(cfg, resume=args.resume)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="d2kd")
    logger.info("Device: %s", resolve_device(cfg.train.device))
    return do_eval(cfg, args) if args.eval_only else do_train(cfg, args)


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training options, ``--check-teacher`` and ``--list-methods``."""
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = __doc__
    parser.add_argument("--check-teacher", action="store_true", help="evaluate the teacher first and print its AP")
    parser.add_argument("--list-methods", action="store_true", help="print the methods of distill(), and exit")
    return parser


def invoke_main() -> None:
    parser = argument_parser()
    args = parser.parse_args()
    if args.list_methods:
        return list_methods()
    if not os.path.isfile(args.config_file):
        parser.error(f"--config-file {args.config_file!r}: no such file")
    for opt in args.opts:
        if opt.startswith("-") or "=" not in opt:
            parser.error(f"{opt!r} is no key=value override; options come before the overrides")
    gpus = torch.cuda.device_count()
    if gpus and args.num_gpus > gpus:
        parser.error(f"--num-gpus {args.num_gpus}, but this machine has {gpus}")
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except (ConfigError, FileNotFoundError) as e:
        sys.exit(f"train_net.py: {e}")


if __name__ == "__main__":
    invoke_main()
