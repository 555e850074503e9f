"""Detectron2's SimpleTrainer with mixed precision on GPU and CPU, and gradient clipping."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from d2kd.engine.ranks import names_the_wait

__all__ = ["Trainer"]


class Trainer(SimpleTrainer):
    """
    :class:`detectron2.engine.SimpleTrainer` with automatic mixed precision and clipping by norm. Detectron2's
    ``AMPTrainer`` needs CUDA, and cannot clip unscaled gradients between backward and step.

    Args:
        model: returns a dict of scalar losses in training; possibly wrapped in ``DistributedDataParallel``.
        data_loader: iterable of what ``model`` takes.
        optimizer: over the parameters to train.
        amp_dtype: ``torch.float16`` (CUDA only, with loss scaling), ``torch.bfloat16``, or None for float32.
        clip_grad: ``max_norm`` and optionally ``norm_type`` of :func:`torch.nn.utils.clip_grad_norm_`,
            applied to all the optimizer's parameters together, after unscaling; the norm before clipping is
            logged as ``grad_norm``. None: no clipping.

    Raises:
        ValueError: float16 on a CPU, another dtype, or a ``clip_grad`` without a positive ``max_norm``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable | None,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        clip_grad: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type = next(model.parameters()).device.type
        if amp_dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"amp_dtype is {amp_dtype}, expected torch.float16, torch.bfloat16 or None.")
        if amp_dtype == torch.float16 and self.device_type != "cuda":
            raise ValueError(
                f"float16 mixed precision needs a GPU, but the model is on {self.device_type!r}: set "
                "train.amp.dtype=bfloat16 or train.amp.enabled=False."
            )
        if clip_grad is not None and (
            not set(clip_grad) <= {"max_norm", "norm_type"} or not clip_grad.get("max_norm", 0) > 0
        ):
            raise ValueError(f"train.clip_grad is {dict(clip_grad)}, expected None or max_norm > 0 and norm_type.")
        self.amp_dtype = amp_dtype
        self.clip_grad = clip_grad
        # Disabled, unless the dtype is float16, it changes nothing.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)

    def run_step(self) -> None:
        with names_the_wait(f"iteration {self.iter}"):
            self._run_step()

    def _run_step(self) -> None:
        if not self.model.training:
            raise RuntimeError("The model was changed to eval mode during training: a hook must set it back.")
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            loss_dict = self.model(data)
        losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self.after_backward()
        if self.clip_grad is not None:
            # Undo the loss scaling first: the limit is for the gradients that the optimizer uses.
            self.grad_scaler.unscale_(self.optimizer)
            params = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(params, self.clip_grad["max_norm"], self.clip_grad.get("norm_type", 2.0))
            self.storage.put_scalar("grad_norm", norm)
        # Before the step: a non-finite loss raises here and leaves the weights as they were.
        self._write_metrics(loss_dict, data_time)
        if self.clip_grad is not None and not self.grad_scaler.is_enabled() and not torch.isfinite(norm):
            # Clipping by an infinite norm makes every weight NaN. (With loss scaling, the scaler skips the step.)
            raise FloatingPointError(
                f"The gradient's norm is {norm.item()} though the losses are finite. The weights are those before this "
                "step: lower the learning rate or a loss's weight."
            )
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Empty if the checkpoint's run did not scale losses: this run then begins with the default scale.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
