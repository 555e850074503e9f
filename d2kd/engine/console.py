"""What a run prints: in a terminal one line that is rewritten, elsewhere plain lines. ``log.txt`` has everything."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import sys
import time
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from detectron2.engine import HookBase, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from d2kd.config.nodes import dataset_names, target_name
from d2kd.engine.ema import EMA_PREFIX
from d2kd.modeling import DistilledDetector

__all__ = ["Console", "ProgressLine", "log_summary", "start_logs"]

logger = logging.getLogger(f"detectron2.{__name__}")

#: Loggers of which records of a single line are printed: d2kd's own, and who says that training starts.
_PRINTED = ("d2kd.", "detectron2.d2kd.", "detectron2.engine.train_loop")
_ITERATIONS = "detectron2.utils.events"  # Detectron2's line every train.log_period iterations
_EVALUATION = "detectron2.evaluation.evaluator"  # how far an evaluation is, every few seconds
_LOGGERS = ("detectron2", "d2kd", "fvcore")
_COLORS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m"}
_SECONDS = 0.2  # between two paintings of the line


class Console(logging.Handler):
    """
    Prints warnings, and what a person wants to see of a run. Colours are for terminals, and not if the environment
    variable ``NO_COLOR`` is set.

    Args:
        stream: a terminal or anything else.
        quiet: only warnings and errors.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        super().__init__()
        self._stream, self._quiet = stream, quiet
        #: Whether a line can be rewritten.
        self.rewrites = stream.isatty() and os.environ.get("TERM") != "dumb" and not quiet
        self._colors = stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self._status = ""
        self.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", datefmt="%m/%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.levelno < logging.WARNING:
                if record.name == _EVALUATION and self.rewrites and not message.startswith("Total"):
                    self.status(message)
                if not self._is_printed(record.name, message):
                    return
            text = self.format(record)
            if not record.exc_info:
                text = " ".join(text.split())
            if record.levelno >= logging.WARNING:
                level = f"{record.levelname}: "
                if self._colors:
                    level = f"{_COLORS.get(record.levelno, _COLORS[logging.ERROR])}{level}\033[0m"
                text = level + text
            self._stream.write(f"{self._erased()}{text}\n{self._status}")
            self._stream.flush()
        except Exception:  # as any handler of logging
            self.handleError(record)

    def status(self, text: str) -> None:
        """Rewrite the last line of a terminal, cut to its width; "" takes it away."""
        if self.rewrites:
            erased = self._erased()
            self._status = " ".join(text.split())[: shutil.get_terminal_size().columns - 1]
            self._stream.write(erased + self._status)
            self._stream.flush()

    def _erased(self) -> str:
        return "\r\033[K" if self._status else ""

    def _is_printed(self, name: str, message: str) -> bool:
        if self._quiet or "\n" in message:
            return False
        return name.startswith(_PRINTED) or (name == _ITERATIONS and not self.rewrites)


class ProgressLine(HookBase):
    """
    Shows how far a run is: iteration, time left, metrics so far, and its losses, the median of 20 iterations. Register
    it on the main rank, last.

    Args:
        console: with a terminal.
        metric: ``train.best_metric``; that of averaged weights is shown beside it.
    """

    def __init__(self, console: Console, metric: str) -> None:
        self._console, self._metric = console, metric.removeprefix(EMA_PREFIX)
        self._next = 0.0

    def after_step(self) -> None:
        if time.monotonic() >= self._next:
            self._console.status(self._text())
            self._next = time.monotonic() + _SECONDS

    def after_train(self) -> None:
        self._console.status("")

    def _text(self) -> str:
        storage, done, total = self.trainer.storage, self.trainer.iter + 1, self.trainer.max_iter
        histories, latest = storage.histories(), storage.latest()
        groups = [f"{done}/{total} {done / total:.0%}"]
        if "time" in histories:  # not yet in the first iterations
            seconds = histories["time"].median(1000)
            groups.append(f"ETA {timedelta(seconds=round(seconds * (total - done)))}, {seconds:.2f} s/it")
        names = [name for name in (self._metric, EMA_PREFIX + self._metric) if name in latest]
        groups.append(", ".join(f"{name.replace('bbox/', '')} {latest[name][0]:.2f}" for name in names))
        losses = {name.removeprefix("loss_"): histories[name].median(20) for name in histories if "loss" in name}
        groups.append(", ".join(f"{name} {value:.3g}" for name, value in losses.items()))
        return " | ".join(filter(None, groups))


def start_logs(cfg: DictConfig, args: argparse.Namespace, *, quiet: bool = False) -> Console | None:
    """
    Detectron2's ``default_setup``, which seeds the process and writes ``config.yaml``, with another console: the
    environment, the command line and the config go to ``log.txt`` alone.

    Args:
        cfg: of the run.
        args: of Detectron2's ``default_argument_parser``.
        quiet: print warnings and errors alone.

    Returns:
        the console; None on all ranks but the main one.
    """
    output, rank = cfg.train.output_dir, comm.get_rank()
    discarded = io.StringIO()
    with redirect_stdout(discarded):
        # It would write the file with colours.
        default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
        setup_logger(output, distributed_rank=rank, name="d2kd")
    logger.info("Contents of %s:\n%s", args.config_file, Path(args.config_file).read_text())
    console = Console(sys.stdout, quiet=quiet) if comm.is_main_process() else None
    for name in _LOGGERS:
        named = logging.getLogger(name)
        printing = [x for x in named.handlers if isinstance(x, Console) or getattr(x, "stream", None) is discarded]
        for handler in printing:
            named.removeHandler(handler)
        if console is not None:
            named.addHandler(console)
    return console


def log_summary(cfg: DictConfig, model: nn.Module) -> None:
    """What a run is, in a few lines; the teacher and the training data say so themselves."""
    train = cfg.train
    detector = model.student if isinstance(model, DistilledDetector) else model
    losses = model.losses if isinstance(model, DistilledDetector) else {}
    logger.info(
        "%s: %s, %.2f M parameters, %.2f M of them trained",
        "Student" if losses else "Model",
        type(detector).__name__,
        sum(x.numel() for x in detector.parameters()) / 1e6,
        sum(x.numel() for x in detector.parameters() if x.requires_grad) / 1e6,
    )
    if isinstance(model, DistilledDetector):
        logger.info("Distillation: %s", ", ".join(losses) or "none, it is trained alone")
    evaluation = f"every {train.eval_period} iterations" if train.eval_period else "at the end"
    logger.info(
        "Schedule: %d iterations, %s, learning rate %s; evaluation on %s %s; a checkpoint every %d",
        train.max_iter,
        target_name(cfg.optimizer).rpartition(".")[2],
        cfg.optimizer.get("lr", "of its own default"),
        ", ".join(dataset_names(cfg, "test")) or "dataloader.test",
        evaluation,
        train.checkpointer.period,
    )
    logger.info("Output: %s (log.txt has the environment, the config and the model)", train.output_dir)
