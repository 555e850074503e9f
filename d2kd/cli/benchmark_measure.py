"""Time and peak memory of things to run."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import nn

__all__ = ["Case", "Measured", "measure", "peak_bytes", "ratio", "synchronize"]

# Kineto prints a line for each profile otherwise; it reads this at the first one.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@dataclass(frozen=True)
class Case:
    """One thing to measure, ``run(setup())``; only ``run`` is measured."""

    name: str
    run: Callable[[Any], object]
    setup: Callable[[], Any] = lambda: None


class Measured(TypedDict):
    """Of one case: its seconds in each round, and its peak memory."""

    seconds: list[float]
    peak_bytes: int


def measure(
    cases: Sequence[Case], rounds: int, device: torch.device, parameters: Iterable[nn.Parameter] = ()
) -> dict[str, Measured]:
    """
    Peak memory of each case, then their seconds in ``rounds`` rounds of one case after the other, so that other work on
    the machine falls on all alike. On a CPU the seconds are the processor's, elsewhere those of the wall.

    Args:
        parameters: those whose gradients the cases fill. The gradients exist while memory is measured.
    """
    parameters = [x for x in parameters if x.requires_grad]
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    measured: dict[str, Measured] = {
        case.name: {"seconds": [], "peak_bytes": peak_bytes(case, device, parameters)} for case in cases
    }
    for _ in range(rounds):
        for case in cases:
            inputs = case.setup()
            synchronize(device)
            start = clock()
            case.run(inputs)
            synchronize(device)
            measured[case.name]["seconds"].append(clock() - start)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return measured


def ratio(measured: Mapping[str, Measured], over: Sequence[str], under: Sequence[str]) -> float:
    """Median over the rounds of each round's own ratio of the cases ``over`` to the cases ``under``."""
    rounds = (zip(*(measured[name]["seconds"] for name in names)) for names in (over, under))
    return statistics.median(sum(a) / sum(b) for a, b in zip(*rounds))


def peak_bytes(case: Case, device: torch.device, parameters: Iterable[nn.Parameter] = ()) -> int:
    """Highest memory in use during ``case.run``, above what was in use before it. See :func:`measure`."""
    inputs = case.setup()
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        case.run(inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        case.run(inputs)
    events = profile.kineto_results.events() if profile.kineto_results is not None else []
    used = peak = 0
    for event in events:  # in the order of time
        if event.name() == "[memory]":
            used += event.nbytes()
            peak = max(peak, used)
    return peak


def synchronize(device: torch.device) -> None:
    """Wait for what was started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
