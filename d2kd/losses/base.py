"""The distillation loss: source x region x kernel x normaliser."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

from d2kd.regions import REGION_REGISTRY, check_options

if TYPE_CHECKING:  # a dense output is duck-typed here: this room must not need detectron2
    from d2kd.modeling.dense_output import DenseOutput, OutputSpec

__all__ = ["LOSS_REGISTRY", "NORMALIZERS", "SOURCES", "DistillationLoss"]

LOSS_REGISTRY = Registry("DISTILLATION_LOSS")
LOSS_REGISTRY.__doc__ = """
Registry for :class:`DistillationLoss` modules: one kernel each, with its hyper-parameters.
"""

#: Whose dense output a loss compares with the teacher's.
SOURCES = ("student", "crossed")

#: What a term is divided by. "Per rank" = summed over ranks and divided by the number of ranks, so that a term averaged
#: over ranks is the term of the whole batch.
#: positives: positives of this step, floor 1, per rank (the default);
#: images: half the images of this step, per rank: a sum over locations that equals the papers' at two images a GPU;
#: locations: the region's total weight, per rank: a weighted mean over locations;
#: level_locations: for each level the region's total weight on it, per rank: a sum of the levels' weighted means;
#: local_positives: positives of this rank, counted at least once an image: on one rank what BCKD's and CrossKD's code
#:     divides by (on several, that code takes the mean over ranks, except for RetinaNet);
#: ema: the student's own running normaliser, Detectron2's ``loss_normalizer`` (local, as Detectron2 keeps it);
#: none: nothing, the sum over this rank's locations (parity with LD's code, where it grows with the images a GPU).
NORMALIZERS = ("positives", "images", "locations", "level_locations", "local_positives", "ema", "none")


class DistillationLoss(nn.Module, ABC):
    """
    One distillation term: ``weight * sum over locations of region * kernel(source, teacher) / normaliser``.

    A subclass holds a kernel's hyper-parameters, sets :attr:`task` and implements :meth:`level_loss`.

    Args:
        weight: the term's weight; 0 turns it off: its kernel is not run.
        source: ``"student"`` or ``"crossed"`` (the student's taps sent through the rest of the teacher's head).
        tail: for ``source="crossed"``: number of teacher tower blocks that the taps are sent through.
        region: the weight of each location: a name in :data:`d2kd.regions.REGION_REGISTRY`, or a mapping of
            "name" and that region's options.
        normalizer: one of :data:`NORMALIZERS`.
        skip_empty_levels: leave out pyramid levels on which this rank has no positive, as the papers' code does
            (parity only: the terms are defined on all locations).

    Raises:
        ValueError: an unknown source, region, option of a region or normaliser, a negative weight or tail.
    """

    #: What the term trains: "cls", "box", "centerness" or "feature". Terms of one task and different sources conflict.
    task: str

    def __init__(
        self,
        *,
        weight: float = 1.0,
        source: str = "student",
        tail: int = 1,
        region: str | Mapping[str, Any] = "all_locations",
        normalizer: str = "positives",
        skip_empty_levels: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for field, value, known in (("source", source, SOURCES), ("normalizer", normalizer, NORMALIZERS)):
            if value not in known:
                raise ValueError(f"{name}.{field} is {value!r}, expected one of {', '.join(known)}.")
        if not isinstance(weight, Real) or not weight >= 0:
            raise ValueError(f"{name}.weight is {weight!r}, expected a number >= 0 (0 turns the term off).")
        if tail < 0:
            raise ValueError(f"{name}.tail is {tail}, expected a number of tower blocks >= 0.")
        self.weight = weight
        self.source = source
        self.tail = tail
        self.region, self.region_options = _read_region(name, region)
        self.normalizer = normalizer
        self.skip_empty_levels = skip_empty_levels

    @property
    def region_key(self) -> tuple:
        """Region and options, hashable: losses with equal keys (and equal sources) share one region."""
        return self.region, *sorted(self.region_options.items())

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
        """The region, per level (N, A, H, W), as this loss reads it: feature losses have one weight a cell."""
        return region

    @abstractmethod
    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """The kernel summed over one level's locations, each weighted by ``region`` (N, A, H, W); a scalar."""

    def forward(self, source: DenseOutput, teacher: DenseOutput, region: Sequence[Tensor]) -> Tensor:
        """
        Args:
            source: dense output of the source.
            teacher: dense output of the teacher, in the same anchors and classes.
            region: per level, detached weights as :meth:`prepare_region` returns them.

        Returns:
            (L,): each level's sum, not yet weighted nor normalised.
        """
        return torch.stack([self.level_loss(source, teacher, level, weight) for level, weight in enumerate(region)])

    def extra_repr(self) -> str:
        fields = ["weight", "source", "tail", "region", "normalizer", "skip_empty_levels"]
        if self.source != "crossed":
            fields.remove("tail")
        if self.region_options:
            fields.insert(fields.index("region") + 1, "region_options")
        return ", ".join(f"{field}={getattr(self, field)}" for field in fields)


def _read_region(loss: str, region: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of a ``region`` field."""
    options = dict(region) if isinstance(region, Mapping) else {"name": region}
    name = options.pop("name", None)
    known = sorted(key for key, _ in REGION_REGISTRY)
    if name not in known:
        raise ValueError(f"{loss}.region is {name!r}, expected one of {', '.join(known)}.")
    parameters = inspect.signature(REGION_REGISTRY.get(name)).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"{loss}.region {name!r} has no option {option!r}; it has {', '.join(accepted) or 'none'}."
            )
    check_options(name, options)
    return name, options
