"""The distillation loss: source x region x kernel x normaliser."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.registry import Registry
from torch import Tensor, nn

from d2kd.losses.kernel import check_integer
from d2kd.losses.region_spec import RegionSpec
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["LOSS_REGISTRY", "SOURCES", "DistillationLoss"]

LOSS_REGISTRY = Registry("DISTILLATION_LOSS")
LOSS_REGISTRY.__doc__ = """
Registry for :class:`DistillationLoss` modules: one kernel each, with its hyper-parameters.
"""

#: Whose dense output a loss compares with the teacher's.
SOURCES = ("student", "crossed")


class DistillationLoss(nn.Module, ABC):
    """
    One distillation loss: ``weight * sum over locations of region * kernel(source, teacher) / normaliser``.

    A subclass holds a kernel's hyper-parameters, sets :attr:`task` and implements :meth:`level_loss`. One that sums
    over several regions, each with its own normaliser, replaces :attr:`regions` after ``super().__init__``.

    Args:
        weight: the loss's weight; 0 turns it off: its kernel is not run.
        source: ``"student"`` or ``"crossed"`` (the student's taps sent through the rest of the teacher's head).
        tail: for ``source="crossed"``: number of teacher tower blocks that the taps are sent through.
        region: the weight of each location: a name in :data:`d2kd.regions.REGION_REGISTRY`, or a mapping of
            "name" and the region's options. One of several that a function makes is named with a dot, such as
            "task_integration.weak".
        normalizer: one of :data:`d2kd.losses.NORMALIZERS`.
        skip_empty_levels: leave out pyramid levels on which this rank has no positive, as the papers' code does
            (parity only: the losses are defined on all locations).
        schedule: what the weight is multiplied by, a function of the iteration over ``schedule_iters``, from 0 to 1;
            None: 1. After ``schedule_iters`` it keeps its last value. Where it is 0 the loss is off.
        schedule_iters: iterations that ``schedule`` is stretched over.

    Raises:
        ValueError: an unknown source, region, option of a region or normaliser, a negative weight, tail or value of
            the schedule, or a schedule without ``schedule_iters``.
        TypeError: a schedule that is none.
    """

    #: What the loss trains: "cls", "box", "centerness" or "feature". Losses of one task and different sources conflict.
    task: str

    weight: float
    source: str
    tail: int
    skip_empty_levels: bool
    schedule: ParamScheduler | None
    schedule_iters: int | None

    #: The regions that the loss sums over.
    regions: tuple[RegionSpec, ...]

    #: The step that is being taken, told by the detector before each one; for what changes while training.
    iteration: int = 0

    def __init__(
        self,
        *,
        weight: float = 1.0,
        source: str = "student",
        tail: int = 1,
        region: str | Mapping[str, Any] = "all_locations",
        normalizer: str = "positives",
        skip_empty_levels: bool = False,
        schedule: ParamScheduler | None = None,
        schedule_iters: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if source not in SOURCES:
            raise ValueError(f"{name}.source is {source!r}, expected one of {', '.join(SOURCES)}.")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(f"{name}.weight is {weight!r}, expected a finite number >= 0 (0 turns the loss off).")
        check_integer(name, "tail", tail, at_least=0)
        self.weight = weight
        self.source = source
        self.tail = tail
        self.regions = (RegionSpec.of(name, region=region, normalizer=normalizer),)
        self.skip_empty_levels = skip_empty_levels
        self._schedule_end = _check_schedule(name, schedule, schedule_iters)
        self.schedule = schedule
        self.schedule_iters = schedule_iters

    @property
    def source_key(self) -> tuple[str, int]:
        """(source, tail): which dense output the loss reads. There is one of "student", of tail 0."""
        return self.source, self.tail if self.source == "crossed" else 0

    @property
    def scheduled_weight(self) -> float:
        """
        The weight at :attr:`iteration`.

        Raises:
            ValueError: the schedule is negative there.
        """
        if self.schedule is None or self.schedule_iters is None:
            return self.weight
        factor = self.schedule(min(self.iteration / self.schedule_iters, self._schedule_end))
        if factor < 0:
            name = type(self).__name__
            raise ValueError(f"{name}.schedule is {factor:.3g} at iteration {self.iteration}, expected >= 0.")
        return self.weight * factor

    @property
    def reads_predictions(self) -> bool:
        """
        Whether the loss, or one of its regions, reads what the heads predict. Source and teacher must then have the
        same anchors. If no loss of a step does, the teacher's head does not run.
        """
        return True

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:  # noqa: B027
        """
        Refuse, before the first step, outputs that the kernel cannot compare.

        Args:
            source: what is known of the source's dense output.
            teacher: the same of the teacher's.

        Raises:
            ValueError: what was found, what is needed, what to change. The caller adds the loss's name in front.
        """

    def prepare_region(self, region: Sequence[Tensor]) -> Sequence[Tensor]:
        """A region, per level (N, A, H, W), as this loss reads it: feature losses have one weight a cell."""
        return region

    @abstractmethod
    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """
        The kernel summed over one level's locations, each weighted by ``region`` (N, A, H, W); a scalar. With several
        :attr:`regions`, ``region`` is (R, N, A, H, W) and the sums (R,).
        """

    def forward(self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor]) -> Tensor:
        """
        Args:
            source: dense output of the source.
            teacher: dense output of the teacher, in the same anchors and classes.
            region: per level, detached weights as :meth:`prepare_region` returns them, (N, A, H, W); of several
                :attr:`regions` stacked in front, (R, N, A, H, W).

        Returns:
            (L,) or, of several regions, (L, R): each level's sums, not yet weighted nor normalised.
        """
        return torch.stack([self.level_loss(source, teacher, level, weight) for level, weight in enumerate(region)])

    def extra_repr(self) -> str:
        fields: dict[str, Any] = {"weight": self.weight, "source": self.source}
        if self.source == "crossed":
            fields["tail"] = self.tail
        for spec in self.regions:
            suffix = f"_{spec.label}" if spec.label else ""
            fields[f"region{suffix}"] = spec.name
            if spec.options:
                fields[f"region_options{suffix}"] = spec.options
            fields[f"normalizer{suffix}"] = spec.normalizer
        fields["skip_empty_levels"] = self.skip_empty_levels
        if self.schedule is not None:
            fields["schedule"] = type(self.schedule).__name__
            fields["schedule_iters"] = self.schedule_iters
        return ", ".join(f"{field}={value}" for field, value in fields.items())


def _check_schedule(loss: str, schedule: ParamScheduler | None, iters: int | None) -> float:
    """The largest number that the schedule takes: 1, or just below for those of fvcore's that refuse 1."""
    if schedule is None:
        return 1.0
    if not isinstance(schedule, ParamScheduler):
        raise TypeError(f"{loss}.schedule is a {type(schedule).__name__}, expected a ParamScheduler of fvcore.")
    check_integer(loss, "schedule_iters", iters, at_least=1)
    end = 1.0
    try:
        schedule(end)
    except RuntimeError:
        end = math.nextafter(1.0, 0.0)
    except IndexError as error:
        raise ValueError(
            f"{loss}.schedule: a {type(schedule).__name__} has no value after its last step, take a "
            "MultiStepParamScheduler."
        ) from error
    for where in (0.0, end):
        value = schedule(where)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{loss}.schedule is {value:.3g} at {where:.0%} of its iterations, expected >= 0.")
    return end
