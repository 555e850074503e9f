"""What a method is, and what presets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import DictConfig

__all__ = ["SAME_LOCATIONS", "Method", "combined", "warm_up"]

#: What a pair needs for any loss of source "student" on predictions.
SAME_LOCATIONS = "the same anchors and classes"


@dataclass(frozen=True)
class Method(Mapping):
    """
    The presets of one method: a mapping of detector family -> losses node.

    Attributes:
        paper: title, venue and year.
        needs: what must agree between student and teacher, beside the strides of their levels.
        presets: detector family, or a class of that family with a preset of its own -> name -> loss node.
        reconstructed: what of it is not taken from the paper or its authors' code; "" if all is.
    """

    paper: str
    needs: str
    presets: Mapping[str, Mapping[str, DictConfig]]
    reconstructed: str = ""

    def __getitem__(self, family: str) -> Mapping[str, DictConfig]:
        return self.presets[family]

    def __iter__(self) -> Iterator[str]:
        return iter(self.presets)

    def __len__(self) -> int:
        return len(self.presets)


def combined(*methods: Method) -> Method:
    """All losses of several methods, for the families that each has a preset for."""
    families = [family for family in methods[0] if all(family in method for method in methods)]
    return Method(
        paper=" + ".join(method.paper for method in methods),
        needs="; ".join(dict.fromkeys(method.needs for method in methods)),
        presets={f: {name: loss for method in methods for name, loss in method[f].items()} for f in families},
        reconstructed="; ".join(filter(None, (method.reconstructed for method in methods))),
    )


def warm_up(iters: int) -> dict[str, DictConfig | int]:
    """Fields of a loss whose weight grows linearly from 0 over the first ``iters`` iterations."""
    return dict(schedule=L(LinearParamScheduler)(start_value=0.0, end_value=1.0), schedule_iters=iters)
