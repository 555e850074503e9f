"""The distillation loss: source x region x kernel x normaliser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

from fvcore.common.registry import Registry
from torch import Tensor, nn

from d2kd.regions import REGION_REGISTRY

if TYPE_CHECKING:  # a dense output is duck-typed here: this room must not need detectron2
    from d2kd.modeling.dense_output import DenseOutput

__all__ = ["LOSS_REGISTRY", "NORMALIZERS", "SOURCES", "DistillationLoss"]

LOSS_REGISTRY = Registry("DISTILLATION_LOSS")
LOSS_REGISTRY.__doc__ = """
Registry for :class:`DistillationLoss` modules: one kernel each, with its hyper-parameters.
"""

#: Whose dense output a loss compares with the teacher's.
SOURCES = ("student", "crossed")

#: What a term is divided by.
#: positives: positives of this step summed over ranks, floor 1, divided by the number of ranks (the default);
#: local_positives: positives of this rank, counted at least once an image (parity with the papers' code);
#: ema: the student's own running normaliser, Detectron2's ``loss_normalizer`` (local, as Detectron2 keeps it).
NORMALIZERS = ("positives", "local_positives", "ema")


class DistillationLoss(nn.Module, ABC):
    """
    One distillation term: ``weight * sum over locations of region * kernel(source, teacher) / normaliser``.

    A subclass holds a kernel's hyper-parameters, sets :attr:`task` and implements :meth:`level_loss`.

    Args:
        weight: the term's weight; 0 turns it off: its kernel is not run.
        source: ``"student"`` or ``"crossed"`` (the student's taps sent through the rest of the teacher's head).
        tail: for ``source="crossed"``: number of teacher tower blocks that the taps are sent through.
        region: name in :data:`d2kd.regions.REGION_REGISTRY`: the weight of each location.
        normalizer: one of :data:`NORMALIZERS`.
        skip_empty_levels: leave out pyramid levels on which this rank has no positive, as the papers' code does
            (parity only: the terms are defined on all locations).

    Raises:
        ValueError: an unknown source, region or normaliser, a negative weight or tail.
    """

    #: The head branch that the term trains: "cls" or "box". Two terms of one task and different sources conflict.
    task: str

    def __init__(
        self,
        *,
        weight: float = 1.0,
        source: str = "student",
        tail: int = 1,
        region: str = "all_locations",
        normalizer: str = "positives",
        skip_empty_levels: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for field, value, known in (
            ("source", source, SOURCES),
            ("normalizer", normalizer, NORMALIZERS),
            ("region", region, sorted(key for key, _ in REGION_REGISTRY)),
        ):
            if value not in known:
                raise ValueError(f"{name}.{field} is {value!r}, expected one of {', '.join(known)}.")
        if not isinstance(weight, Real) or not weight >= 0:
            raise ValueError(f"{name}.weight is {weight!r}, expected a number >= 0 (0 turns the term off).")
        if tail < 0:
            raise ValueError(f"{name}.tail is {tail}, expected a number of tower blocks >= 0.")
        self.weight = weight
        self.source = source
        self.tail = tail
        self.region = region
        self.normalizer = normalizer
        self.skip_empty_levels = skip_empty_levels

    @abstractmethod
    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """The kernel summed over one level's locations, each weighted by ``region`` (N, A, H, W); a scalar."""

    def forward(self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor]) -> Tensor:
        """
        Args:
            source: dense output of the source.
            teacher: dense output of the teacher, in the same anchors and classes.
            region: per level, detached weights of shape (N, A, H, W).

        Returns:
            a scalar, not yet weighted nor normalised.
        """
        return sum(self.level_loss(source, teacher, level, weight) for level, weight in enumerate(region))

    def extra_repr(self) -> str:
        fields = ["weight", "source", "tail", "region", "normalizer", "skip_empty_levels"]
        if self.source != "crossed":
            fields.remove("tail")
        return ", ".join(f"{field}={getattr(self, field)}" for field in fields)
