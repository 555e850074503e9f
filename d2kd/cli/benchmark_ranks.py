"""One step shared by several processes: what it gives, and how long it takes."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import TypedDict

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2kd.cli.benchmark_cases import ITERATION, distill_pair, losses_of
from d2kd.cli.benchmark_data import Batch, Size, build_pair, make_batch, title_of
from d2kd.cli.benchmark_measure import synchronize
from d2kd.engine import create_ddp_model, launch_ranks
from d2kd.losses import PearsonFeatureKD, TaskIntegrationKD
from d2kd.modeling import DistilledDetector

__all__ = ["Ranks", "Shared", "measure_ranks"]

_TIMEOUT = timedelta(minutes=10)

#: Losses that standardise over the batch of a rank.
_STANDARDISING = (PearsonFeatureKD, TaskIntegrationKD)


class Shared(TypedDict):
    """
    A step of some number of ranks: its terms averaged over them, how much these and the gradients differ from those of
    the first number of ranks, as a share of them, and the seconds of each round: on a CPU the processor's for the main
    rank, else those of the wall.
    """

    terms: dict[str, float]
    term_differences: dict[str, float]
    gradient_difference: float
    seconds: list[float]


class Ranks(TypedDict):
    """
    Of a method: its steps by the number of ranks, and which of its terms read statistics of the batch of a rank, so
    that they depend on that number.
    """

    of_a_ranks_batch: list[str]
    ranks: dict[str, Shared]


class _Step(TypedDict):
    of_a_ranks_batch: list[str]
    terms: dict[str, float]
    gradients: dict[str, Tensor]
    seconds: list[float]


def measure_ranks(
    detector: str, size: Size, methods: Sequence[str], ranks: Sequence[int], rounds: int, device: torch.device
) -> dict[str, Ranks]:
    """
    For each method the same batch, shared by each number of processes in ``ranks``.

    Args:
        detector: as :func:`build_pair` takes it. Its batch norms keep their statistics, which would be those of a rank,
            and its class scores begin at 1/2: at those of a new head the box losses of GFL are divided by their floor,
            which is one for each rank, as in the papers' framework.
        size: of the whole batch; its images are a multiple of each number.
    """
    found: dict[int, dict[str, _Step]] = {}
    for count in ranks:
        print(f"{title_of(detector)}, {count} processes ", end="", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "steps")
            args = file, detector, size, methods, rounds, device.type, torch.get_num_threads()
            launch_ranks(_share, *args, processes=count, timeout=_TIMEOUT)
            found[count] = torch.load(file)
        print(file=sys.stderr)
    first = found[ranks[0]]
    return {
        method: {
            "of_a_ranks_batch": first[method]["of_a_ranks_batch"],
            "ranks": {str(count): _compared(steps[method], first[method]) for count, steps in found.items()},
        }
        for method in methods
    }


def _share(
    file: Path, detector: str, size: Size, methods: Sequence[str], rounds: int, device_type: str, threads: int
) -> None:
    """One process's part; the main one writes what all have found."""
    torch.set_num_threads(threads)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    device = torch.device(device_type)
    student, teacher = build_pair(detector, size, device)
    nn.init.zeros_(student.head.get_parameter("cls_score.bias"))
    share = make_batch(size, device)[comm.get_rank() :: comm.get_world_size()]
    modules: dict[str, nn.Module] = {}
    steps: dict[str, _Step] = {}
    for method in methods:
        model = distill_pair(deepcopy(student), deepcopy(teacher), losses_of(method, student))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        modules[method] = create_ddp_model(model, device)
        losses = _run(modules[method], share)
        terms = torch.stack([x.detach() for x in losses.values()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(terms)
        steps[method] = {
            "of_a_ranks_batch": _of_a_ranks_batch(model, losses),
            "terms": dict(zip(losses, (terms / comm.get_world_size()).tolist())),
            "gradients": {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None},
            "seconds": [],
        }
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(rounds):
        for method, module in modules.items():
            comm.synchronize()
            start = clock()
            _run(module, share)
            synchronize(device)
            steps[method]["seconds"].append(clock() - start)
        if comm.is_main_process():
            print(".", end="", file=sys.stderr, flush=True)
    if comm.is_main_process():
        torch.save(steps, file)


def _of_a_ranks_batch(model: DistilledDetector, names: Iterable[str]) -> list[str]:
    """Crossed terms (taps are aligned), those that standardise, and what Detectron2's own normalisers divide."""
    found = [name for name in names if hasattr(model.student, "loss_normalizer") and not name.startswith("loss_kd_")]
    for name, loss in model.losses.items():
        if loss.source == "crossed" or isinstance(loss, _STANDARDISING):
            found.append(f"loss_kd_{name}")
    return found


def _run(module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    module.zero_grad()
    with EventStorage(ITERATION):
        losses: Mapping[str, Tensor] = module(batch)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def _compared(step: _Step, first: _Step) -> Shared:
    norms = torch.stack([x.norm() for x in first["gradients"].values()])
    differences = torch.stack([(step["gradients"][name] - x).norm() for name, x in first["gradients"].items()])
    return {
        "terms": step["terms"],
        "term_differences": {
            name: abs(step["terms"][name] - value) / abs(value) if value else abs(step["terms"][name])
            for name, value in first["terms"].items()
        },
        "gradient_difference": (differences.norm() / norms.norm()).item(),
        "seconds": step["seconds"],
    }
