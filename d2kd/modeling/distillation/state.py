"""What distillation adds to a checkpoint."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import Tensor, nn

from d2kd.losses import SOURCES, DistillationLoss
from d2kd.losses.feature import check_widths
from d2kd.modeling.adapters import get_adapter

logger = logging.getLogger(f"detectron2.{__name__}")

__all__ = ["DistillationState", "build_losses", "make_tap_projectors"]


def build_losses(losses: Mapping[str, DistillationLoss | Mapping[str, Any] | None]) -> dict[str, DistillationLoss]:
    """
    The losses by name, without those that are None.

    Raises:
        ValueError: a name that no module can have, or arguments that a loss refuses.
        TypeError: something that is no ``DistillationLoss``, or arguments that a loss does not have.
    """
    built = {}
    for name, loss in losses.items():
        try:
            built[name] = instantiate(loss)
        except (TypeError, ValueError) as error:
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(f"model.losses.{name}: {error}") from error
    built = {name: loss for name, loss in built.items() if loss is not None}
    for name, loss in built.items():
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise ValueError(f"model.losses.{name}: {name!r} cannot name a loss, choose another name.")
        if not isinstance(loss, DistillationLoss):
            found = "mapping without _target_" if isinstance(loss, Mapping) else type(loss).__name__
            raise TypeError(f"model.losses.{name} is a {found}, expected a DistillationLoss.")
    return built


def make_tap_projectors(
    student: DenseDetector, losses: Iterable[DistillationLoss], channels: Sequence[int] | None
) -> dict[str, nn.Conv2d]:
    """
    A projector for each branch and tail that ``losses`` cross; without bias, since alignment takes means away.

    Args:
        channels: [student's, teacher's]; None: none are needed.

    Raises:
        ValueError: ``channels`` are not two positive whole numbers.
    """
    if channels is None:
        return {}
    ours, theirs = check_widths("model.tap_projector_channels", channels)
    tails = sorted({loss.tail for loss in losses if loss.source == "crossed"})
    branches = get_adapter(student).towers(student.head) if tails else ()
    return {f"{branch}_{tail}": nn.Conv2d(ours, theirs, 1, bias=False) for tail in tails for branch in branches}


class DistillationState(nn.Module):
    """
    The child ``distillation`` of a :class:`DistilledDetector`: its losses with what they learn, the projectors of
    crossed taps, the student's running loss normaliser of each rank, which Detectron2 keeps as a plain attribute and so
    forgets on resume, and how many positives an image has.

    Keys of ``distillation.*`` that a checkpoint lacks keep their present values and are not reported missing, so
    that any checkpoint of the plain student loads strictly.
    """

    positives_per_image: Tensor

    def __init__(self, losses: Mapping[str, DistillationLoss], tap_projectors: Mapping[str, nn.Conv2d]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.tap_projectors = nn.ModuleDict(tap_projectors)
        # Running means over images with labels, of each of SOURCES; 0 = none yet.
        self.register_buffer("positives_per_image", torch.zeros(len(SOURCES), dtype=torch.float64))
        self._normalizer_names()
        self._loaded = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = [key for key in state_dict if re.fullmatch(rf"{re.escape(prefix)}loss_normalizer_\d+", key)]
        self._loaded = bool(saved)
        names = self._normalizer_names()
        if saved and len(saved) != len(names):
            mean = torch.stack([state_dict.pop(key) for key in saved]).mean()
            state_dict.update({prefix + name: mean for name in names})
            logger.info(
                "The checkpoint has loss normalisers of %d ranks, this run has %d: each takes their mean, %.2f",
                len(saved),
                len(names),
                mean,
            )
        for key, value in self.state_dict(prefix=prefix).items():
            state_dict.setdefault(key, value)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationState:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        # model.half() must not round them, and a model built without storage must begin without history.
        for name, value in exact.items():
            device = getattr(self, name).device
            setattr(self, name, torch.zeros_like(value, device=device) if value.is_meta else value.to(device))
        return self

    def tap_projectors_of(self, tail: int) -> dict[str, nn.Conv2d] | None:
        """For each branch the projector of the taps that leave ``tail`` blocks; None: there are none."""
        suffix = f"_{tail}"
        return {
            name.removesuffix(suffix): projector
            for name, projector in self.tap_projectors.items()
            if name.endswith(suffix) and isinstance(projector, nn.Conv2d)
        } or None

    def zero_of(self, loss: DistillationLoss) -> Tensor:
        """
        A zero in the graph of all parameters that are trained by ``loss``, those of its tap projectors included: every
        parameter takes part in every step, whichever terms are on and whichever branch they read.
        """
        modules: list[nn.Module] = [loss]
        if loss.source == "crossed":
            modules += (self.tap_projectors_of(loss.tail) or {}).values()
        parameters = [p for module in modules for p in module.parameters()]
        return sum((p.float().sum() * 0 for p in parameters), torch.zeros((), device=self.positives_per_image.device))

    def _normalizer_names(self) -> list[str]:
        """
        The buffers of the student's loss normalisers, one a rank; 0: no step taken yet. They are made when the number
        of ranks is known, which in some trainers is after the model was built.
        """
        names = [f"loss_normalizer_{rank}" for rank in range(comm.get_world_size())]
        for name in names:
            if not hasattr(self, name):  # float64, since Detectron2's attribute is a Python float
                self.register_buffer(name, torch.zeros_like(self.positives_per_image[0]))
        return names

    def restore_normalizer(self, student: DenseDetector) -> None:
        """Give this rank's loaded normaliser back to the student, in the first step after each load."""
        if self._loaded:
            value = getattr(self, self._normalizer_names()[comm.get_rank()]).item()
            if value > 0:
                vars(student)["loss_normalizer"] = value  # where Detectron2 keeps it
            self._loaded = False

    def keep(self, loss_normalizer: Tensor, positives_per_image: Tensor) -> None:
        """Take what :func:`compute_normalizers` says is kept for the next steps."""
        for name, value in zip(self._normalizer_names(), loss_normalizer, strict=True):
            getattr(self, name).copy_(value)
        self.positives_per_image.copy_(positives_per_image)
