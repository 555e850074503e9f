"""Everything that distillation adds to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DistillationState"]


class DistillationState(nn.Module):
    """
    The child ``distillation`` of a :class:`DistilledDetector`: its losses with what they learn, and the student's
    running loss normaliser, which Detectron2 keeps as a plain attribute and so forgets on resume.

    Keys of ``distillation.*`` that a checkpoint lacks keep their present values and are not reported missing, so
    that any checkpoint of the plain student loads strictly.
    """

    loss_normalizer: Tensor

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        # Mean over ranks; 0 = no step taken yet. float64, since the attribute is a Python float.
        self.register_buffer("loss_normalizer", torch.zeros((), dtype=torch.float64))
        self._restored = False

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        self._restored = prefix + "loss_normalizer" in state_dict
        for key, value in self.state_dict(prefix=prefix).items():
            state_dict.setdefault(key, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable, recurse: bool = True) -> DistillationState:
        exact = self.loss_normalizer
        super()._apply(fn, recurse)
        # model.half() must not round it.
        self.loss_normalizer = exact.to(self.loss_normalizer.device)
        return self

    def restore_normalizer(self, student: nn.Module) -> None:
        """Give a loaded normaliser back to the student; once after each load."""
        if self._restored:
            value = self.loss_normalizer.item()
            if value > 0:
                student.loss_normalizer = value
            self._restored = False
