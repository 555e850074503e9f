"""Sheets of the same images while training, for TensorBoard and other writers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from d2kd.engine.sheet.detections import make_sheet
from d2kd.engine.sheet.images import class_names, test_images
from d2kd.engine.sheet.step import look_at_step
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors.interface import num_classes_of
from d2kd.modeling.distillation.agreement import raised_on_all_ranks

__all__ = ["SheetWriter", "sheet_writers"]

logger = logging.getLogger(f"detectron2.{__name__}")

_IMAGES = 2


class SheetWriter(HookBase):
    """
    Puts the sheets of some images into the event storage every ``period`` iterations, as ``sheet/0``, ``sheet/1``.
    Training is the same bit for bit as without. All ranks take part in the images' steps, the main one draws.

    Register it on every rank, behind hooks that measure time and before those that write.

    Args:
        period: in iterations.
        model: that is trained, not wrapped.
        images: returns what each image is called, and the item as of a batch, the same on all ranks.
        names: of the classes.
    """

    def __init__(
        self,
        period: int,
        model: DistilledDetector,
        images: Callable[[], list[tuple[str, dict[str, Any]]]],
        names: Callable[[], Sequence[str] | None] = lambda: None,
    ) -> None:
        self._period, self._model, self._make_images, self._names = period, model, images, names

    def before_train(self) -> None:
        with raised_on_all_ranks(self._model.device):
            self._images = self._make_images()
        if not self._images:
            logger.warning("No image of dataloader.test has objects: no sheets are drawn (train.vis_period).")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period:
            return
        for index, (name, item) in enumerate(self._images):
            try:
                view = look_at_step(self._model, item, self.trainer.iter)
            except FloatingPointError as error:  # on all ranks
                logger.warning("There is no sheet of %s at iteration %d: %s", name, self.trainer.iter, error)
                continue
            with raised_on_all_ranks(self._model.device):
                if comm.is_main_process():
                    title = f"{name}, after {done} iterations"
                    sheet = make_sheet(self._model, item, view, names=self._names(), title=title)
                    self.trainer.storage.put_image(f"sheet/{index}", np.asarray(sheet).transpose(2, 0, 1))


def sheet_writers(cfg: DictConfig, model: nn.Module) -> list[HookBase | None]:
    """The hook that ``train.vis_period`` asks for, if there is something to be seen and somewhere to show it."""
    period = cfg.train.get("vis_period", 0)
    if not period:
        return []
    if not isinstance(model, DistilledDetector) or model.teacher is None:
        logger.info("train.vis_period is %d, but nothing is distilled: no sheets are drawn.", period)
        return []
    if find_spec("tensorboard") is None and not cfg.train.get("writers"):
        logger.warning("train.vis_period is %d, but tensorboard is not installed: no sheets are drawn.", period)
        return []
    names = partial(class_names, cfg, num_classes_of(model.student))
    return [SheetWriter(period, model, partial(test_images, cfg, _IMAGES), names)]
