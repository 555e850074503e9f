"""What distillation reads off one pass of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from detectron2.structures import Boxes

from d2kd.modeling.adapters import Taps
from d2kd.structures import DenseOutput

__all__ = ["TeacherStep"]


@dataclass
class TeacherStep:
    """
    What the teacher made of one batch.

    Attributes:
        output: its dense output on the levels that were asked for, as far as it was asked for.
        taps: (branch, index) -> one (N, C, H, W) activation for each of these levels.
        anchors: those of all its levels, on its own canvas.
        sizes: (H, W) of all its levels.
        levels: which of them were asked for.
        canvas: (H, W) of its padded batch.
    """

    output: DenseOutput
    taps: Taps
    anchors: list[Boxes]
    sizes: list[tuple[int, int]]
    levels: Sequence[int]
    canvas: tuple[int, int]

    def crop(self, sizes: Sequence[tuple[int, int]]) -> TeacherStep:
        """
        The same with output and taps cut to the student's maps, as views.

        Args:
            sizes: (H, W) of the student's map on each of :attr:`levels`.

        Raises:
            ValueError: the student's maps are larger.
        """
        own = [self.sizes[level] for level in self.levels]
        if own == list(sizes):
            return self
        if any(ours < theirs for a, b in zip(own, sizes, strict=True) for ours, theirs in zip(a, b)):
            raise ValueError(
                f"On a canvas of {self.canvas[0]}x{self.canvas[1]} the teacher's levels are {own}, smaller than the "
                f"student's {list(sizes)}: both backbones must round sizes alike."
            )
        taps = {key: [x[..., :h, :w] for x, (h, w) in zip(maps, sizes)] for key, maps in self.taps.items()}
        return replace(self, output=self.output.crop(sizes), taps=taps)
