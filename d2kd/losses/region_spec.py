"""What a loss sums over: a region, and what the sum is divided by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2kd.regions import REGION_REGISTRY, check_options, is_label_free

__all__ = ["NORMALIZERS", "RegionSpec"]

#: What a loss's sum over a region is divided by. "Per rank" = summed over ranks and divided by the number of ranks, so
#: that a sum averaged over ranks is that of the whole batch.
#: positives: positives of this step, floor 1, per rank (the default); where the region holds in images without labels,
#:     each counts as many as images with labels have on average (a running mean over steps), so that it weighs in a
#:     term what they do;
#: images: half the images of this step, per rank: a sum over locations that equals the papers' at two images a GPU;
#:     those without labels count where the region holds in them;
#: locations: the region's total weight, per rank: a weighted mean over locations;
#: level_locations: for each level the region's total weight on it, per rank: a sum of the levels' weighted means;
#: level_mean: the same, divided by the number of levels on which the region is not empty: a mean of these means;
#: local_positives: positives of this rank, counted at least once an image: on one rank what BCKD's and CrossKD's code
#:     divides by (on several, that code takes the mean over ranks, except for RetinaNet). Not for batches with images
#:     without labels, which the papers do not have;
#: none: nothing, the sum over this rank's locations (parity with LD's code, where it grows with the images a GPU).
NORMALIZERS = ("positives", "images", "locations", "level_locations", "level_mean", "local_positives", "none")


@dataclass(frozen=True)
class RegionSpec:
    """
    One region that a loss sums over.

    Attributes:
        name: of a region of :data:`d2kd.regions.REGION_REGISTRY`; "function.region" where a function makes several.
        options: the function's options.
        normalizer: one of :data:`NORMALIZERS`.
        label: tells the regions of one loss apart in monitors; "" where there is one.
    """

    name: str
    options: Mapping[str, Any]
    normalizer: str
    label: str = ""

    @classmethod
    def of(
        cls, owner: str, *, region: str | Mapping[str, Any], normalizer: str, label: str = "", field: str = "region"
    ) -> RegionSpec:
        """
        Args:
            owner: the loss, for errors.
            region: a name, or a mapping of "name" and the options of the function that makes the region.
            normalizer: one of :data:`NORMALIZERS`.
            label: see :class:`RegionSpec`.
            field: the loss's field that ``region`` is from, for errors.

        Raises:
            ValueError: an unknown region, option or normaliser, or an option's value.
        """
        if normalizer not in NORMALIZERS:
            raise ValueError(f"{owner}.normalizer is {normalizer!r}, expected one of {', '.join(NORMALIZERS)}.")
        options = dict(region) if isinstance(region, Mapping) else {"name": region}
        name = options.pop("name", None)
        spec = cls(str(name), {key: _hashable(value) for key, value in options.items()}, normalizer, label)
        if spec.function not in {key for key, _ in REGION_REGISTRY}:
            raise ValueError(f"{owner}.{field} is {name!r}, expected one of {', '.join(_known())}.")
        _check_names(f"{owner}.{field}", spec)
        try:
            made = check_options(spec.function, spec.options)
        except ValueError as error:
            raise ValueError(f"{owner}.{field} {name!r}: {error}") from error
        if spec.member not in made:
            expected = (f"{spec.function}.{member}" if member else spec.function for member in made)
            raise ValueError(f"{owner}.{field} is {name!r}, expected {' or '.join(expected)}.")
        return spec

    @property
    def function(self) -> str:
        """The registered function that makes the region."""
        return self.name.partition(".")[0]

    @property
    def member(self) -> str:
        """Which of the function's regions it is; "" where the function makes one."""
        return self.name.partition(".")[2]

    @property
    def label_free(self) -> bool:
        """Whether the region holds in images without labels."""
        return is_label_free(self.function)

    @property
    def function_key(self) -> tuple[Any, ...]:
        """Function and options, hashable: regions with equal keys (and sources) are made in one call."""
        return self.function, *sorted(self.options.items())


def _known() -> list[str]:
    """The names of all regions."""
    made = {key: check_options(key, {}) for key, _ in sorted(REGION_REGISTRY)}
    return [f"{function}.{member}" if member else function for function, members in made.items() for member in members]


def _hashable(value: Any) -> Any:
    """Lists of a config as tuples."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(_hashable(item) for item in value) if is_list else value


def _check_names(field: str, spec: RegionSpec) -> None:
    parameters = inspect.signature(REGION_REGISTRY.get(spec.function)).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in spec.options:
        if option not in accepted:
            has = ", ".join(accepted) or "none"
            raise ValueError(f"{field} {spec.function!r} has no option {option!r}; it has {has}.")
