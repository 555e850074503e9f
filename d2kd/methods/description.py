"""What :func:`d2kd.list_methods` says of a method."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import instantiate

from d2kd.methods.base import Method

__all__ = ["LossDescription", "MethodDescription", "MethodDescriptions"]


@dataclass(frozen=True)
class LossDescription:
    """
    Where one loss of a preset distils.

    Attributes:
        source: whose dense output is compared with the teacher's, "student" or "crossed".
        regions: of each part, "region" or "region (area)".
        on: whether the preset gives it a weight.
    """

    source: str
    regions: tuple[str, ...]
    on: bool

    def __str__(self) -> str:
        return f"{self.source}, {', '.join(self.regions)}{'' if self.on else ' (off)'}"


@dataclass(frozen=True)
class MethodDescription:
    """
    One method. ``str`` of it is a paragraph of text.

    Attributes:
        name: the key of :data:`d2kd.methods.METHODS`.
        paper: title, venue and year.
        reconstructed: what of it is not taken from the paper or its authors' code; "" if all is.
        families: the detector families, or classes of a family, that it has a preset for.
        needs: what must agree between student and teacher.
        losses: name -> the different uses of that loss in the presets.
    """

    name: str
    paper: str
    reconstructed: str
    families: tuple[str, ...]
    needs: tuple[str, ...]
    losses: Mapping[str, tuple[LossDescription, ...]]

    @classmethod
    def of(cls, name: str, method: Method) -> MethodDescription:
        uses: dict[str, dict[LossDescription, None]] = {}
        for preset in method.values():
            for key, node in preset.items():
                loss = instantiate(node)
                regions = tuple(f"{x.region} ({x.area})" if x.area else x.region for x in loss.parts)
                uses.setdefault(key, {})[LossDescription(loss.source, regions, loss.weight > 0)] = None
        return cls(
            name=name,
            paper=method.paper,
            reconstructed=method.reconstructed,
            families=tuple(method),
            needs=("levels and classes in common", *method.needs),
            losses={key: tuple(different) for key, different in uses.items()},
        )

    def __str__(self) -> str:
        rows = {
            "paper": self.paper,
            "reconstructed": self.reconstructed,
            "detectors": ", ".join(self.families),
            "needs": "; ".join(self.needs),
            **{key: " or ".join(map(str, uses)) for key, uses in self.losses.items()},
        }
        width = max(map(len, rows))
        lines = [f"  {key:{width}}  {text}" for key, text in rows.items() if text]
        wrapped = (textwrap.fill(line, 118, subsequent_indent=" " * (width + 4)) for line in lines)
        return "\n".join([self.name, *wrapped])


class MethodDescriptions(dict[str, MethodDescription]):
    """Method -> its description. ``str`` of it is the text of all of them."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.values()))
