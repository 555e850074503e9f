"""Training and evaluation: additions to Detectron2's trainer, hooks and defaults, and ``do_train`` made of them."""

from d2kd.engine.check_data import check_classes, check_image_format
from d2kd.engine.checks import check_config
from d2kd.engine.console import Console, ProgressLine, start_logs
from d2kd.engine.defaults import ConfigError, amp_dtype, create_ddp_model, default_writers, resolve_device
from d2kd.engine.ema import EMA_FILE, EMA_PREFIX, WeightEMA
from d2kd.engine.evaluation import evaluate, teacher_predictor
from d2kd.engine.hooks import BestCheckpointer, EvalHook, OptimizerWatch, SeedEachIteration, TrainingCost
from d2kd.engine.loaders import check_evaluator, make_loader
from d2kd.engine.ranks import Ranks, launch_ranks, names_the_wait, ranks_of
from d2kd.engine.resume import ResumeError, differences, kept_record, write_record
from d2kd.engine.run_folder import check_run_folder
from d2kd.engine.run_lock import locked
from d2kd.engine.sheet import SheetWriter
from d2kd.engine.train import do_eval, do_test, do_train
from d2kd.engine.trainer import Trainer

__all__ = [
    "EMA_FILE",
    "EMA_PREFIX",
    "BestCheckpointer",
    "ConfigError",
    "Console",
    "EvalHook",
    "OptimizerWatch",
    "ProgressLine",
    "Ranks",
    "ResumeError",
    "SeedEachIteration",
    "SheetWriter",
    "Trainer",
    "TrainingCost",
    "WeightEMA",
    "amp_dtype",
    "check_classes",
    "check_config",
    "check_evaluator",
    "check_image_format",
    "check_run_folder",
    "create_ddp_model",
    "default_writers",
    "differences",
    "do_eval",
    "do_test",
    "do_train",
    "evaluate",
    "kept_record",
    "launch_ranks",
    "locked",
    "make_loader",
    "names_the_wait",
    "ranks_of",
    "resolve_device",
    "start_logs",
    "teacher_predictor",
    "write_record",
]
