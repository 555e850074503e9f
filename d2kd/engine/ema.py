"""``train.ema``: a moving average of the student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2kd.checkpoint import save_whole
from d2kd.engine.defaults import ConfigError
from d2kd.modeling import DistilledDetector

__all__ = ["EMA_FILE", "EMA_PREFIX", "WeightEMA", "check_ema"]

Tensors = tuple[Tensor, ...] | list[Tensor]

#: The averaged weights at the end of a run, and what the names of their metrics begin with.
EMA_FILE, EMA_PREFIX = "model_final_ema.pth", "ema/"


def check_ema(ema: object) -> None:
    """
    Raises:
        ConfigError: ``train.ema`` is neither None nor a mapping with a ``decay`` between 0 and 1 and nothing else.
    """
    if ema is None:
        return
    values = dict(ema) if isinstance(ema, (Mapping, DictConfig)) else {}
    decay = values.get("decay")
    if values.keys() != {"decay"} or not (isinstance(decay, float) and 0 < decay < 1):
        raise ConfigError(
            f"train.ema is {ema!r}, expected None, or a mapping with a decay > 0 and < 1 alone: dict(decay=0.999)."
        )


class WeightEMA(HookBase):
    """
    The exponential moving average of a model's weights over the steps of training: torch's ``AveragedModel`` with its
    EMA function. Of a :class:`d2kd.modeling.DistilledDetector` the student alone is averaged.

    Parameters and floating-point buffers are averaged. So the statistics of batch norm are those of the weights that
    they were averaged with; the latest ones belong to the latest weights. Buffers that count are copied. The average
    begins with the weights that training begins with, and forgets them sooner than ``decay`` says: its n-th update
    keeps min(decay, (1 + n) / (10 + n)), so that a short run is averaged, too.

    Register it on every rank, before hooks that save or evaluate. Its state is saved with the trainer's; a checkpoint
    that has none begins the average with its weights.

    Args:
        model: that is trained, not wrapped.
        decay: > 0 and < 1.
        output_dir: gets ``model_final_ema.pth`` after the last step, an ordinary checkpoint of the plain student.
    """

    def __init__(self, model: nn.Module, decay: float, output_dir: str) -> None:
        self._source = model
        self._decay = decay
        self._file = Path(output_dir, EMA_FILE)
        self._average = AveragedModel(_averaged(model), multi_avg_fn=self._update, use_buffers=True).eval()

    @property
    def model(self) -> nn.Module:
        """The plain student with the averaged weights, in eval mode; the same object all along."""
        return self._average.module

    def before_train(self) -> None:
        if self._average.n_averaged == 0:
            self._average.update_parameters(_averaged(self._source))

    def after_step(self) -> None:
        self._average.update_parameters(_averaged(self._source))

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and comm.is_main_process():
            save_whole({"model": self.model.state_dict(), "iteration": self.trainer.iter - 1}, self._file)

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._average.load_state_dict(state_dict)

    def _update(self, averages: Tensors, values: Tensors, _: Tensor | int) -> None:
        """``multi_avg_fn`` of ``AveragedModel``; it is called with tensors of one dtype."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        n = int(self._average.n_averaged)  # on the CPU; torch's argument is on the device of the weights
        get_ema_multi_avg_fn(min(self._decay, (1 + n) / (10 + n)))(averages, values, n)


def _averaged(model: nn.Module) -> nn.Module:
    return model.student if isinstance(model, DistilledDetector) else model
