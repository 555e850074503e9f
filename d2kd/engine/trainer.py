"""Detectron2's SimpleTrainer with mixed precision on GPU and CPU, gradient clipping and accumulation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from d2kd.engine.failed_step import save_failed_step
from d2kd.engine.ranks import names_the_wait
from d2kd.engine.resume import WAYS_OUT, ResumeError, check_parameters, kept_hyperparameters, parameter_names
from d2kd.modeling import DistilledDetector
from d2kd.modeling.backbones import FrozenStatisticsBatchNorm2d
from d2kd.modeling.distillation.agreement import raised_on_all_ranks
from d2kd.modeling.distillation.batch_check import check_batch, check_samples
from d2kd.modeling.distillation.monitors import read_step
from d2kd.modeling.distillation.non_finite import NonFiniteError, StepEvidence

__all__ = ["Trainer", "check_clip_grad"]


class Trainer(SimpleTrainer):
    """
    :class:`detectron2.engine.SimpleTrainer` with automatic mixed precision, clipping by norm and accumulated
    gradients. Detectron2's ``AMPTrainer`` needs CUDA, and cannot clip unscaled gradients between backward and step.

    A loss that is not finite on any rank stops all ranks, in the step where it occurs, however seldom metrics are
    gathered. So does an error of a rank's data loader, with the sentence of that rank.

    Args:
        model: returns a dict of scalar losses in training; possibly wrapped in ``DistributedDataParallel``.
        data_loader: iterable of what ``model`` takes.
        optimizer: over the parameters to train.
        amp_dtype: ``torch.float16`` (CUDA only, with loss scaling), ``torch.bfloat16``, or None for float32.
        clip_grad: ``max_norm`` and optionally ``norm_type`` of :func:`torch.nn.utils.clip_grad_norm_`,
            applied to all the optimizer's parameters together, after unscaling; the norm before clipping is
            logged as ``grad_norm``. None: no clipping.
        accumulate: in how many parts the backbone takes this rank's batch, one after the other: it keeps no activations
            but computes them again, part by part, for the backward pass. Heads and losses see the whole batch, so that
            losses, normalisers and gradients are those of ``accumulate=1``.
        gather_metric_period: iterations from one gathering of the ranks' metrics to the next.
        async_write_metrics: gather and write metrics in a thread, while training goes on.
        zero_grad_before_forward: not between forward and backward.
        output_dir: where the batch and the weights of a step that is not finite are saved; None: they are not.

    Raises:
        ValueError: float16 on a CPU, another dtype, a ``clip_grad`` without a positive ``max_norm``, an ``accumulate``
            or ``gather_metric_period`` that is no whole number >= 1, parts of a batch for a model without ``backbone``
            or with batch norm in it, or ``async_write_metrics`` with several ranks of which gloo is the backend.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable | None,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        clip_grad: Mapping[str, float] | None = None,
        accumulate: int = 1,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
        output_dir: str | None = None,
    ) -> None:
        for key, value in {"accumulate": accumulate, "trainer.gather_metric_period": gather_metric_period}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"train.{key} is {value!r}, expected a whole number >= 1.")
        if async_write_metrics and comm.get_world_size() > 1 and torch.distributed.get_backend() == "gloo":
            raise ValueError(
                "train.trainer.async_write_metrics is True, but these ranks have one process group (gloo) for metrics "
                "and gradients, which two threads cannot share: set it to False, or train on GPUs with NCCL."
            )
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.device_type = next(model.parameters()).device.type
        if amp_dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"amp_dtype is {amp_dtype}, expected torch.float16, torch.bfloat16 or None.")
        if amp_dtype == torch.float16 and self.device_type != "cuda":
            raise ValueError(
                f"float16 mixed precision needs a GPU, but the model is on {self.device_type!r}: set "
                "train.amp.dtype=bfloat16 or train.amp.enabled=False."
            )
        check_clip_grad(clip_grad)
        self.amp_dtype = amp_dtype
        self.clip_grad = clip_grad
        self.output_dir = output_dir
        self._detector = model.module if isinstance(model, DistributedDataParallel) else model
        self.accumulate = accumulate
        self.backbone = _backbone_for_parts(self._detector) if accumulate > 1 else None
        self.checks_losses = not isinstance(self._detector, DistilledDetector)  # which checks its own, and its batches
        # Disabled, unless the dtype is float16, it changes nothing.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)

    def run_step(self) -> None:
        with names_the_wait(f"iteration {self.iter}"):
            if not self.model.training:
                raise RuntimeError("The model was changed to eval mode during training: a hook must set it back.")
            with raised_on_all_ranks() as raise_if:
                start = time.perf_counter()
                data = next(self._data_loader_iter)
                data_time = time.perf_counter() - start
                if isinstance(self._detector, (DenseDetector, DistilledDetector)):
                    check_samples(data)
                if self.checks_losses and isinstance(self._detector, DenseDetector):
                    check_batch(self._detector, data, key="model", raise_if=raise_if)
            try:
                self._run_step(data, data_time)
            except NonFiniteError as error:
                if self.output_dir is None:
                    raise
                path = save_failed_step(self.output_dir, self._detector, _images(data), self.iter, str(error))
                raise NonFiniteError(
                    f"{error} The batch is saved: `d2kd check --replay {path} --config-file "
                    f"{self.output_dir}/config.yaml` runs it again."
                ) from error

    def _run_step(self, data: Any, data_time: float) -> None:
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with (
            torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None),
            _in_parts(self.backbone, self.accumulate),
        ):
            loss_dict = self.model(data)
        evidence = StepEvidence(_images(data), self.iter, self._detector)
        losses = sum(loss_dict.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self.after_backward()
        if self.clip_grad is not None:
            # Undo the loss scaling first: the limit is for the gradients that the optimizer uses.
            self.grad_scaler.unscale_(self.optimizer)
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(params, self.clip_grad["max_norm"], self.clip_grad.get("norm_type", 2.0))
            self.storage.put_scalar("grad_norm", norm)
        # Before the step: a non-finite loss raises here and leaves the weights as they were. (Detectron2 raises on the
        # main rank only, and only where it gathers metrics.)
        if self.checks_losses:
            read_step(loss_dict, {}, evidence)
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, loss_dict, data_time, iter=self.iter)
        else:
            self._write_metrics(loss_dict, data_time)
        if self.clip_grad is not None and not self.grad_scaler.is_enabled() and not torch.isfinite(norm):
            # Clipping by an infinite norm makes every weight NaN. (With loss scaling, the scaler skips the step.)
            names = [
                name
                for name, x in self._detector.named_parameters()
                if x.grad is not None and not x.grad.isfinite().all()
            ]
            first = f" (of {len(names)} parameters, first {names[0]!r})" if names else ""
            raise evidence.error(f"the gradient's norm{first}", "the losses are finite; ")
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def after_train(self) -> None:
        self.concurrent_executor.shutdown()  # before the hooks close the writers
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        names = parameter_names(self.model, self.optimizer)
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict(), "parameters": names}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        check_parameters(state_dict, parameter_names(self.model, self.optimizer))
        with kept_hyperparameters(self.optimizer):
            try:
                super().load_state_dict(state_dict)
            except KeyError as error:
                raise ResumeError(
                    f"--resume cannot go on: the checkpoint's optimizer is of another kind than this run's, its state "
                    f"has no {error}. Either {WAYS_OUT}"
                ) from error
        # Empty if the checkpoint's run did not scale losses: this run then begins with the default scale.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _images(data: object) -> list[Mapping[str, Any]]:
    """Of what the model is given, the items of Detectron2's data loaders."""
    return [item for item in data if isinstance(item, Mapping)] if isinstance(data, Sequence) else []


def check_clip_grad(clip_grad: object) -> None:
    """
    Raises:
        ValueError: neither None nor a mapping with a positive ``max_norm`` and at most a positive ``norm_type``.
    """
    if clip_grad is None:
        return
    values = dict(clip_grad) if isinstance(clip_grad, (Mapping, DictConfig)) else {}
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values.values())
    if not (numbers and {"max_norm"} <= values.keys() <= {"max_norm", "norm_type"} and min(values.values()) > 0):
        raise ValueError(f"train.clip_grad is {clip_grad!r}, expected None or max_norm > 0 and norm_type > 0.")


def _backbone_for_parts(model: nn.Module) -> nn.Module:
    """The model's backbone, in which no image depends on the others of its batch."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ValueError(
            f"train.accumulate needs a model with a backbone, and {type(model).__name__} has none: set it to 1."
        )
    for name, module in backbone.named_modules():
        frozen = isinstance(module, FrozenStatisticsBatchNorm2d) or not module.training
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not frozen:
            raise ValueError(
                f"train.accumulate would give backbone.{name} ({type(module).__name__}) the statistics of a part of "
                "the batch: use frozen batch norm or group norm in the backbone, or set train.accumulate=1."
            )
    return backbone


@contextmanager
def _in_parts(backbone: nn.Module | None, parts: int) -> Iterator[None]:
    """
    Inside, ``backbone`` takes a batch in ``parts``, and keeps no activations for the backward pass, which computes
    those of one part after the other again.
    """
    if backbone is None:
        yield
        return
    whole = backbone.forward

    def forward(images: Tensor) -> dict[str, Tensor]:
        features = [checkpoint(whole, part, use_reentrant=False) for part in images.chunk(parts)]
        return {name: torch.cat([part[name] for part in features]) for name in features[0]}

    own = vars(backbone).get("forward")
    backbone.forward = forward  # of this instance, for this call
    try:
        yield
    finally:
        del backbone.forward
        if own is not None:
            backbone.forward = own
