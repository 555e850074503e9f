"""Hooks that Detectron2 lacks: cost, evaluations and the best weights across resumes, randomness, idle optimizers."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from d2kd.checkpoint import WholeCheckpointer, checkpoint_names, whole_file
from d2kd.data.samples import derive_seed
from d2kd.engine.evaluation import Results
from d2kd.engine.metrics_file import was_logged
from d2kd.modeling.distillation.agreement import on_any_rank, raised_on_all_ranks
from d2kd.modeling.distillation.health import PATIENCE

__all__ = [
    "BestCheckpointer",
    "EvalHook",
    "OptimizerWatch",
    "PeriodicCheckpointer",
    "SeedEachIteration",
    "TrainingCost",
]

# Below Detectron2's logger, which any script that trains sets up.
logger = logging.getLogger(f"detectron2.{__name__}")


class TrainingCost(HookBase):
    """
    Logs the time of training since iteration 0, across resumes, as ``cost/cpu_seconds`` (all threads of this process,
    without data workers) and ``cost/wall_seconds``, of the main rank. Only training steps count (data, forward,
    backward, optimizer), not evaluation, checkpoints and logs: register it before hooks that do those after a step.
    On a GPU both wait for its work, so that it counts for the step that started it.
    """

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self.wall_seconds = 0.0

    def before_step(self) -> None:
        self._synchronize()
        self._started = time.process_time(), time.perf_counter()

    def after_step(self) -> None:
        self._synchronize()
        self.cpu_seconds += time.process_time() - self._started[0]
        self.wall_seconds += time.perf_counter() - self._started[1]
        self._put()

    def after_train(self) -> None:
        self._put()  # beside the last evaluation, which is logged one iteration later

    def _synchronize(self) -> None:
        if torch.cuda.is_initialized():  # also on a machine with GPUs, not where training is on the CPU
            torch.cuda.synchronize()

    def _put(self) -> None:
        self.trainer.storage.put_scalar("cost/cpu_seconds", self.cpu_seconds, smoothing_hint=False)
        self.trainer.storage.put_scalar("cost/wall_seconds", self.wall_seconds, smoothing_hint=False)

    def state_dict(self) -> dict[str, float]:
        return {"cpu_seconds": self.cpu_seconds, "wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.cpu_seconds = state_dict["cpu_seconds"]
        self.wall_seconds = state_dict["wall_seconds"]


class SeedEachIteration(HookBase):
    """
    Seeds the process's generators by (seed, iteration, rank) before every step. So a resumed run draws the same
    numbers as an uninterrupted one, and a distilled run the same as its baseline, whatever teacher, losses and
    evaluations drew before.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        seed = derive_seed(self._seed, self.trainer.iter, comm.get_rank())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)


class OptimizerWatch(HookBase):
    """
    Stops a run whose optimizer trains nothing, or not all of a :class:`d2kd.modeling.DistilledDetector`: a learning
    rate of 0 for ``PATIENCE`` steps in a row, or parameters in no group.

    Args:
        model: that is trained, not wrapped.
        optimizer: that trains it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._idle = 0

    def before_train(self) -> None:
        """
        Raises:
            ValueError: no parameter of the model, or not every trainable one of ``distillation``, is in a group.
        """
        held = {id(x) for group in self._optimizer.param_groups for x in group["params"]}
        trainable = {name: x for name, x in self._model.named_parameters() if x.requires_grad}
        if not any(id(x) in held for name, x in trainable.items() if not name.startswith("distillation.")):
            raise ValueError(
                "None of the model's own trainable parameters is in the optimizer, so that nothing would be trained: "
                "build the optimizer over this model, after it was moved to its device."
            )
        beside = [name for name in trainable if name.startswith("distillation.")]
        missing = [name for name in beside if id(trainable[name]) not in held]
        if missing:
            raise ValueError(
                f"{len(beside) - len(missing)} of the {len(beside)} parameters that are trained beside the student "
                f"(distillation.*) are in the optimizer; {missing[0]} is in no group: build the optimizer over the "
                "DistilledDetector itself, not over d2kd.student(model)."
            )

    def before_step(self) -> None:
        """
        Raises:
            ValueError: the learning rate of each group was 0 in ``PATIENCE`` steps in a row.
        """
        rates = [group["lr"] for group in self._optimizer.param_groups]
        # A rate that is a tensor may lie on a GPU, and reading it would wait for it.
        self._idle = self._idle + 1 if all(isinstance(x, (int, float)) and x == 0 for x in rates) else 0
        if self._idle == PATIENCE:
            raise ValueError(
                f"At iteration {self.trainer.iter} the learning rate had been 0 for {PATIENCE} steps, so that nothing "
                "is trained: look at optimizer.lr and lr_multiplier (its warmup_factor and its values)."
            )


def _on_the_main_rank(save: Callable[[], None]) -> None:
    """Call ``save`` there; every rank must call this, and all raise what it raises."""
    with raised_on_all_ranks():
        if comm.is_main_process():
            save()


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """
    :class:`detectron2.engine.hooks.PeriodicCheckpointer` whose ``max_to_keep`` counts the checkpoints that earlier
    parts of a resumed run left. Register it on every rank: the main one saves, and what it fails of, all ranks say.
    """

    def before_train(self) -> None:
        super().before_train()
        if self.max_to_keep is not None:
            folder = Path(self.checkpointer.save_dir)
            kept = [name for name in checkpoint_names(folder) if name.startswith(f"{self.file_prefix}_")]
            self.recent_checkpoints = [str(folder / name) for name in kept if not name.endswith("_final.pth")]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done >= self.trainer.max_iter:
            _on_the_main_rank(self._save)

    def _save(self) -> None:
        super().after_step()
        while self.max_to_keep is not None and len(self.recent_checkpoints) > self.max_to_keep:  # left by signals
            Path(self.recent_checkpoints.pop(0)).unlink(missing_ok=True)


class EvalHook(hooks.EvalHook):
    """
    :class:`detectron2.engine.hooks.EvalHook` that evaluates a resumed run before its first step where the run had ended
    after a checkpoint, but before the evaluation that was due at that iteration was logged.

    Args:
        eval_period: iterations between two evaluations; 0: after the last alone.
        evaluate: returns the results, as of :func:`d2kd.engine.evaluate`.
        output_dir: the run's folder.
        metric: that every evaluation returns, e.g. "bbox/AP".
    """

    def __init__(self, eval_period: int, evaluate: Callable[[], Results], output_dir: str, metric: str) -> None:
        super().__init__(eval_period, evaluate)
        self._log = Path(output_dir, "metrics.json")
        self._metric = metric

    def before_train(self) -> None:
        done = self.trainer.start_iter
        due = self._period > 0 and 0 < done < self.trainer.max_iter and done % self._period == 0
        if due and on_any_rank(comm.is_main_process() and not was_logged(self._log, done - 1, self._metric)):
            logger.info("metrics.json has no evaluation after %d iterations: the run begins with it", done)
            self.trainer.iter = self.trainer.storage.iter = done - 1  # each step sets both
            self._do_eval()

    def after_train(self) -> None:
        self._eval_after_train = self.trainer.iter >= self.trainer.max_iter  # not where the last step has failed
        super().after_train()


class _WeightsCheckpointer(WholeCheckpointer):
    """Saves a model, but not as the checkpoint that a resumed run continues from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class BestCheckpointer(hooks.BestCheckpointer):
    """
    :class:`detectron2.engine.hooks.BestCheckpointer` (``model_best.pth``: the weights with the highest ``metric``)
    that also writes ``model_best.json`` (metric, value, iteration) and reads it on resume: Detectron2's forgets the
    best value and replaces the file after the first evaluation of a resumed run. The checkpoint holds weights only.
    Register it after :class:`EvalHook`, on every rank: the main one saves, and what it fails of, all ranks say.

    Args:
        eval_period: that of ``EvalHook``.
        model: to save; not wrapped.
        output_dir: folder of both files.
        metric: name in the event storage, e.g. "bbox/AP".
    """

    def __init__(self, eval_period: int, model: nn.Module, output_dir: str, metric: str) -> None:
        super().__init__(eval_period, _WeightsCheckpointer(model, output_dir), metric)
        self._metric = metric
        self._record = Path(output_dir, "model_best.json")
        self._recorded_iter: int | None = None

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and self._record.is_file():
            record = json.loads(self._record.read_text())
            if record["metric"] == self._metric:
                self.best_metric, self.best_iter = record["value"], record["iteration"]
                self._recorded_iter = self.best_iter
        if on_any_rank(self._metric in self.trainer.storage.latest()):  # an evaluation before the first step
            _on_the_main_rank(self._save)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            _on_the_main_rank(self._save)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # not where the last step has failed
            _on_the_main_rank(self._save)

    def _save(self) -> None:
        self._best_checking()
        if self.best_iter == self._recorded_iter:
            return
        record = {"metric": self._metric, "value": self.best_metric, "iteration": self.best_iter}
        with whole_file(self._record) as partial:
            partial.write_text(json.dumps(record))
        self._recorded_iter = self.best_iter
