"""Steps of all families and methods on a device, and on two ranks, against the same steps elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2kd.cli.benchmark_cases import ITERATION, distill_pair, losses_of
from d2kd.cli.benchmark_data import FAMILIES, Batch, Size, build_pair, make_batch, methods_of
from d2kd.cli.check_device_table import Row
from d2kd.engine import launch_ranks
from d2kd.engine.defaults import create_ddp_model

__all__ = ["check_ranks", "check_steps"]

CPU = torch.device("cpu")
SIZE = Size(images=4, canvas=(96, 96), objects=6, classes=5)
#: Where the device is the CPU.
FEW_METHODS = ("crosskd", "ftpd_tid")

#: dtype of autocast, None for none -> largest relative difference from the CPU's fp32 of a term, and of all gradients.
LIMITS: Mapping[torch.dtype | None, tuple[float, float]] = {
    None: (1e-3, 1e-2),
    torch.float16: (0.01, 0.1),
    torch.bfloat16: (0.05, 0.3),
}
NAMES = {None: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
#: A term's difference is relative to itself, and to no less than this share of all terms together.
SMALL = 1e-3
#: Of fp16's gradients, a power of two.
LOSS_SCALE = 2.0**8

#: What every rank's terms must be on the average, and the gradients.
RANK_LIMITS = (1e-4, 1e-3)
#: The losses of these do not depend on how a batch is divided; nor do GFL's detection losses.
RANK_METHODS = ("bckd", "ld")

#: Terms by name, and all gradients in a row.
Step = tuple[dict[str, float], Tensor]


def check_steps(device: torch.device, folder: Path) -> list[Row]:
    """Each family's methods, one step each, in fp32, fp16 and bf16."""
    rows = []
    batch = _batch()
    for family, title in FAMILIES.items():
        pair = _pair(family)
        methods = [x for x in methods_of(f"digits_{family}") if device.type != "cpu" or x in FEW_METHODS]
        expected = {method: _step(pair, method, batch, CPU, None) for method in methods}
        for dtype in LIMITS:
            found = {method: _step(pair, method, batch, device, dtype) for method in methods}
            rows.append(_compare(f"{title}, {NAMES[dtype]}, {len(methods)} methods", found, expected, LIMITS[dtype]))
    return rows


def check_ranks(device: torch.device, folder: Path) -> list[Row]:
    """One step of two ranks with half the batch each, against one rank with the whole."""
    backend = "NCCL" if device.type == "cuda" else "gloo"
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return [Row(what="two NCCL ranks", found="one GPU", ok=None)]
    file = folder / "ranks.pt"
    launch_ranks(_of_rank, device.type, file, processes=2, timeout=timedelta(minutes=1))
    of_ranks = torch.load(file)
    pair, batch = _frozen_pair(), _batch()
    expected = {method: _step(pair, method, batch, device, None) for method in RANK_METHODS}
    what = f"two {backend} ranks, GFL, {' and '.join(RANK_METHODS)}"
    return [_compare(what, of_ranks, expected, RANK_LIMITS)]


def _of_rank(device_type: str, file: Path) -> None:
    """One rank of two; the first writes what both found on the average."""
    device = torch.device(device_type)  # of CUDA's devices the rank's own, which the launcher has set
    rank, half = comm.get_rank(), SIZE.images // 2
    batch = _batch()[rank * half : (rank + 1) * half]
    found = {}
    for method in RANK_METHODS:
        terms, gradients = _step(_frozen_pair(), method, batch, device, None)
        of_all = comm.all_gather(terms)
        found[method] = {name: sum(x[name] for x in of_all) / len(of_all) for name in terms}, gradients
    if comm.is_main_process():
        torch.save(found, file)


def _batch() -> Batch:
    torch.manual_seed(0)  # in every process the same
    return make_batch(SIZE, CPU)


def _frozen_pair() -> Sequence[DenseDetector]:
    """GFL, where the predictions for an image do not depend on the rest of its batch."""
    return [FrozenBatchNorm2d.convert_frozen_batchnorm(detector) for detector in _pair("gfl")]


def _pair(family: str) -> Sequence[DenseDetector]:
    """Student and teacher, on the CPU, with predictions that differ from place to place."""
    student, teacher = build_pair(f"digits_{family}", SIZE, CPU)
    with torch.no_grad():
        for detector in (student, teacher):
            for module in detector.head.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
            # Scores of all heights, so that regions with a threshold have many locations and do not hang on one.
            nn.init.zeros_(detector.head.get_parameter("cls_score.bias"))
            nn.init.normal_(detector.head.get_parameter("bbox_pred.weight"), std=0.01)
            if family == "fcos":  # whose distances go through a ReLU
                nn.init.ones_(detector.head.get_parameter("bbox_pred.bias"))
    return student, teacher


def _step(
    pair: Sequence[DenseDetector], method: str, batch: Batch, device: torch.device, dtype: torch.dtype | None
) -> Step:
    """One distilled step of copies of the pair."""
    student, teacher = (deepcopy(detector).to(device) for detector in pair)
    distilled = distill_pair(student, teacher, losses_of(method, student))
    model = create_ddp_model(distilled, device, broadcast_buffers=False)
    autocast: AbstractContextManager[object] = torch.autocast(device.type, dtype) if dtype else nullcontext()
    scale = LOSS_SCALE if dtype == torch.float16 else 1.0
    # Without TF32, of which cuDNN makes use by default.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), EventStorage(ITERATION):
        with autocast:
            losses = model(batch)
        (torch.stack(list(losses.values())).sum() * scale).backward()
    gradients = [p.grad.detach().double().cpu().flatten() / scale for p in model.parameters() if p.grad is not None]
    return {name: value.item() for name, value in losses.items()}, torch.cat(gradients)


def _compare(what: str, found: Mapping[str, Step], expected: Mapping[str, Step], limits: tuple[float, float]) -> Row:
    """Of all methods, the term and the gradients that differ most."""
    of_terms, of_gradients = {}, {}
    for method, (terms, gradients) in expected.items():
        other_terms, other_gradients = found[method]
        small = SMALL * sum(terms.values())
        for name, value in terms.items():
            of_terms[f"{method} {name}"] = abs(other_terms[name] - value) / max(abs(value), small)
        of_gradients[method] = ((other_gradients - gradients).norm() / gradients.norm()).item()
    worst = [max(x, key=x.__getitem__) for x in (of_terms, of_gradients)]
    largest = of_terms[worst[0]], of_gradients[worst[1]]
    return Row(
        what=what,
        found=f"terms {largest[0]:.1e} ({worst[0]}), gradients {largest[1]:.1e} ({worst[1]})",
        limit=f"{limits[0]:g}, {limits[1]:g}",
        ok=all(x <= limit for x, limit in zip(largest, limits)),  # false of NaN
        figures={"terms": of_terms, "gradients": of_gradients},
    )
