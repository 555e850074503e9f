"""What a method is, and what presets share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import ConstantParamScheduler
from omegaconf import DictConfig

__all__ = ["SAME_LOCATIONS", "Method", "combined", "warm_up"]

#: What a pair needs for any loss of source "student" on predictions.
SAME_LOCATIONS = "the same anchors"

_COCO_ITERS = 90000  # of 16 images, Detectron2's 1x schedule


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


def warm_up() -> dict[str, DictConfig | str]:
    """
    Fields of a loss whose weight grows linearly from 0 over the first 1/180 of the run: 500 iterations of COCO's 90000,
    and as large a part of another schedule. A LazyConfig says how long that is in ``train.max_iter``, a yacs config in
    ``SOLVER.MAX_ITER``; where nothing says it, it is 90000.
    """
    schedule = L(WarmupParamScheduler)(
        scheduler=L(ConstantParamScheduler)(value=1.0),
        warmup_factor=0.0,
        warmup_length=500 / _COCO_ITERS,
        warmup_method="linear",
    )
    return dict(schedule=schedule, schedule_iters=f"${{oc.select:train.max_iter,{_COCO_ITERS}}}")
