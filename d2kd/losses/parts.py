"""What a loss sums over: a region, and what the sum is divided by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2kd.regions import REGION_REGISTRY, check_options, is_label_free

__all__ = ["NORMALIZERS", "Part"]

#: What a part is divided by. "Per rank" = summed over ranks and divided by the number of ranks, so that a part averaged
#: over ranks is that of the whole batch.
#: positives: positives of this step, floor 1, per rank (the default); where the region holds in images without labels,
#:     each counts as many as images with labels have on average (a running mean over steps), so that its part of a term
#:     weighs what theirs do;
#: images: half the images of this step, per rank: a sum over locations that equals the papers' at two images a GPU;
#:     those without labels count where the region holds in them;
#: locations: the region's total weight, per rank: a weighted mean over locations;
#: level_locations: for each level the region's total weight on it, per rank: a sum of the levels' weighted means;
#: level_mean: the same, divided by the number of levels on which the region is not empty: a mean of these means;
#: local_positives: positives of this rank, counted at least once an image: on one rank what BCKD's and CrossKD's code
#:     divides by (on several, that code takes the mean over ranks, except for RetinaNet);
#: ema: the student's own running normaliser, Detectron2's ``loss_normalizer`` (local, as Detectron2 keeps it). Neither
#:     it nor local_positives is for batches with images without labels, which the papers do not have;
#: none: nothing, the sum over this rank's locations (parity with LD's code, where it grows with the images a GPU).
NORMALIZERS = (
    "positives",
    "images",
    "locations",
    "level_locations",
    "level_mean",
    "local_positives",
    "ema",
    "none",
)


@dataclass(frozen=True)
class Part:
    """
    One sum over locations of a loss.

    Attributes:
        region: name in :data:`d2kd.regions.REGION_REGISTRY`.
        options: the region's options.
        area: which of the region's areas; None for a region without areas.
        normalizer: one of :data:`NORMALIZERS`.
        name: tells the parts of one loss apart in monitors; "" where there is one.
    """

    region: str
    options: Mapping[str, Any]
    area: str | None
    normalizer: str
    name: str = ""

    @classmethod
    def of(
        cls, owner: str, *, region: str | Mapping[str, Any], normalizer: str, name: str = "", field: str = "region"
    ) -> Part:
        """
        Args:
            owner: the loss, for errors.
            region: a name, or a mapping of "name", the region's options and, for a region with areas, "area".
            normalizer: one of :data:`NORMALIZERS`.
            name: see :class:`Part`.
            field: the loss's field that ``region`` is from, for errors.

        Raises:
            ValueError: an unknown region, option, area or normaliser, or an option's value.
        """
        if normalizer not in NORMALIZERS:
            raise ValueError(f"{owner}.normalizer is {normalizer!r}, expected one of {', '.join(NORMALIZERS)}.")
        options = dict(region) if isinstance(region, Mapping) else {"name": region}
        region_name, area = options.pop("name", None), options.pop("area", None)
        known = sorted(key for key, _ in REGION_REGISTRY)
        if region_name not in known:
            raise ValueError(f"{owner}.{field} is {region_name!r}, expected one of {', '.join(known)}.")
        options = {key: _frozen(value) for key, value in options.items()}
        _check_names(f"{owner}.{field}", region_name, options)
        try:
            areas = check_options(region_name, options)
        except ValueError as error:
            raise ValueError(f"{owner}.{field}: {error}") from error
        if areas and area not in areas:
            raise ValueError(f"{owner}.{field}.area is {area!r}, but {region_name!r} has {', '.join(areas)}.")
        if area is not None and not areas:
            raise ValueError(f"{owner}.{field}.area is {area!r}, but {region_name!r} has no areas: leave it out.")
        return cls(region_name, options, area, normalizer, name)

    @property
    def label_free(self) -> bool:
        """Whether its region holds in images without labels."""
        return is_label_free(self.region)

    @property
    def region_key(self) -> tuple:
        """Region and options, hashable: parts with equal keys (and sources) share what the region's function made."""
        return self.region, *sorted(self.options.items())


def _frozen(value: Any) -> Any:
    """Lists of a config as tuples, which can be compared and hashed."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(_frozen(item) for item in value) if is_list else value


def _check_names(field: str, region: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(REGION_REGISTRY.get(region)).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise ValueError(f"{field} {region!r} has no option {option!r}; it has {', '.join(accepted) or 'none'}.")
