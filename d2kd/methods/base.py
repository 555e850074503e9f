"""What a method is, and what presets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import DictConfig

__all__ = ["SAME_LOCATIONS", "Method", "combined", "warm_up"]

#: What a pair needs for any loss of source "student" on predictions.
SAME_LOCATIONS = "the same anchors"


@dataclass(frozen=True)
class Method(Mapping):
    """
    The presets of one method: a mapping of detector family -> losses node.

    Attributes:
        paper: title, venue and year.
        needs: what must agree between student and teacher, beside a level of one stride and a class that both have.
        presets: detector family, or a class of that family with a preset of its own -> name -> loss node.
        reconstructed: what of it is not taken from the paper or its authors' code; "" if all is.
    """

    paper: str
    needs: tuple[str, ...]
    presets: Mapping[str, Mapping[str, DictConfig]]
    reconstructed: str = ""

    def __getitem__(self, family: str) -> Mapping[str, DictConfig]:
        return self.presets[family]

    def __iter__(self) -> Iterator[str]:
        return iter(self.presets)

    def __len__(self) -> int:
        return len(self.presets)


def combined(*methods: Method) -> Method:
    """
    All losses of several methods, for the families that one of them has a preset for; where another has none for a
    class of a family (``DistributionFCOS``), that of the family (``FCOS``).
    """
    presets = {}
    for family in dict.fromkeys(family for method in methods for family in method):
        found = [method.get(family, method.get(family.removeprefix("Distribution"))) for method in methods]
        if None not in found:
            presets[family] = {name: loss for losses in found for name, loss in losses.items()}
    return Method(
        paper=" + ".join(method.paper for method in methods),
        needs=tuple(dict.fromkeys(need for method in methods for need in method.needs)),
        presets=presets,
        reconstructed="; ".join(filter(None, (method.reconstructed for method in methods))),
    )


def warm_up(iters: int) -> dict[str, DictConfig | int]:
    """Fields of a loss whose weight grows linearly from 0 over the first ``iters`` iterations."""
    return dict(schedule=L(LinearParamScheduler)(start_value=0.0, end_value=1.0), schedule_iters=iters)
