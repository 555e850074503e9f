"""What d2kd check measures of a distilled model: its terms, and what a step costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import hooks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from d2kd.cli.benchmark_measure import Case, peak_bytes, synchronize
from d2kd.engine import Trainer, amp_dtype
from d2kd.modeling import DistilledDetector
from d2kd.modeling.distillation.health import FIRST_SHARE, SHARE_PERIOD

__all__ = ["TERM_BATCHES", "Cost", "Term", "look_at_terms", "measure_cost"]

Batch = list[dict[str, Any]]

#: A step at which every schedule has come to its end, and gradient shares are measured.
_ITERATION = FIRST_SHARE + 10**4 * SHARE_PERIOD

#: In how many batches terms are looked at.
TERM_BATCHES = 3

_ROUNDS = 4


@dataclass
class Term:
    """A loss of the run: its mean value, and its gradient at the student's FPN outputs over the detection losses'."""

    value: float
    gradient_share: float | None = None


@dataclass
class Cost:
    """Of one training step, forward and backward, and of all of them. Times of the wall."""

    seconds: float
    baseline_seconds: float
    data_seconds: float
    peak_bytes: int
    baseline_peak_bytes: int
    iterations: int

    @property
    def hours(self) -> float:
        return self.iterations * (self.seconds + self.data_seconds) / 3600


def look_at_terms(model: DistilledDetector, batches: Sequence[Batch], cfg: DictConfig) -> dict[str, Term]:
    """
    The losses of some batches, and the gradient shares of those that distil, after a training step on each batch: those
    of a student that was not trained at all say little. ``model`` is trained by that.
    """
    nodes = deepcopy(cfg)
    nodes.optimizer.params.model = model
    trainer = Trainer(
        model,
        batches,
        instantiate(nodes.optimizer),
        amp_dtype=amp_dtype(cfg.train.amp),
        clip_grad=cfg.train.clip_grad,
        accumulate=cfg.train.accumulate,
    )
    trainer.register_hooks([hooks.LRScheduler(scheduler=instantiate(nodes.lr_multiplier))])
    trainer.train(0, len(batches))
    values: dict[str, list[float]] = {}
    for index, batch in enumerate(batches[:TERM_BATCHES]):
        with EventStorage(_ITERATION + SHARE_PERIOD * index) as storage, _autocast(model, cfg):
            losses = model(batch)
        found = {name: value.item() for name, value in losses.items()}
        found |= {key: value for key, (value, _) in storage.latest().items() if key.endswith("_gradient_share")}
        for key, value in found.items():
            values.setdefault(key, []).append(value)
    means = {key: statistics.fmean(x) for key, x in values.items()}
    terms = {}
    for key, value in means.items():
        if key.startswith("loss_kd_"):
            name = key.removeprefix("loss_kd_")
            terms[name] = Term(value, means.get(f"kd/{name}_gradient_share"))
        elif not key.startswith("kd/"):
            terms[key] = Term(value)
    return terms


def measure_cost(model: DistilledDetector, batches: Sequence[Batch], cfg: DictConfig, data_seconds: float) -> Cost:
    """A training step beside that of the student alone, in rounds of one after the other; medians."""
    baseline = DistilledDetector(student=model.student, input_format=model.input_format).train()
    parameters = [x for x in model.parameters() if x.requires_grad]

    def case(name: str, detector: nn.Module, batch: Batch) -> Case:
        def step(_: None) -> None:
            with EventStorage(_ITERATION + 1), _autocast(model, cfg):
                losses = detector(batch)
            torch.stack(list(losses.values())).sum().backward()

        return Case(name, step, setup=lambda: model.zero_grad(set_to_none=False))

    def seconds(timed: Case) -> float:
        inputs = timed.setup()
        synchronize(model.device)
        start = time.perf_counter()
        timed.run(inputs)
        synchronize(model.device)
        return time.perf_counter() - start

    pairs = [(case("step", model, x), case("baseline", baseline, x)) for x in batches[:_ROUNDS]]
    peaks = [peak_bytes(x, model.device, parameters) for x in pairs[0]]
    times = [[seconds(x) for x in pair] for pair in pairs]
    model.zero_grad()
    step, alone = (statistics.median(x) for x in zip(*times))
    return Cost(step, alone, data_seconds, peaks[0], peaks[1], cfg.train.max_iter)


def _autocast(model: DistilledDetector, cfg: DictConfig) -> torch.autocast:
    dtype = amp_dtype(cfg.train.amp)
    return torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None)
