"""What the losses on the pyramid's features share: one weight a cell, and an adapter between two widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from d2kd.losses.base import DistillationLoss
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["FeatureLoss", "check_widths"]


class FeatureLoss(DistillationLoss):
    """
    A distillation loss over the maps that the heads were given. A cell's weight is the largest of its anchors'.

    Where the maps differ in width, the loss owns a convolution from the student's to the teacher's, one for all
    levels, as the pyramid's levels share a head. It is trained with the student and saved under
    ``distillation.losses.NAME.adapter``; the student's checkpoint does not have it.

    A subclass implements :meth:`level_loss` on :meth:`feature_maps` and :meth:`cell_weights`.

    Args:
        projector_channels: [student's, teacher's] channels, for the convolution between them; None: none. May be equal.
        projector_kernel: its kernel size, 1 or 3; padded, so that maps keep their size.
        normalizer: see :class:`DistillationLoss`; "level_locations" is a sum of the levels' weighted means over cells.
        kwargs: see :class:`DistillationLoss`; ``source`` is "student", since a crossed output has no features.

    Raises:
        ValueError: as :class:`DistillationLoss`, and for another source, number of channels or kernel size.
    """

    task = "feature"

    def __init__(
        self,
        *,
        projector_channels: Sequence[int] | None = None,
        projector_kernel: int = 1,
        normalizer: str = "level_locations",
        **kwargs: Any,
    ) -> None:
        super().__init__(normalizer=normalizer, **kwargs)
        name = type(self).__name__
        if self.source != "student":
            raise ValueError(f"{name}.source is {self.source!r}, which has no features: expected 'student'.")
        _check_adapter(name, projector_channels, projector_kernel)
        self.projector_channels = None if projector_channels is None else tuple(projector_channels)
        self.projector_kernel = projector_kernel
        self.adapter: nn.Conv2d | None = None
        if self.projector_channels is not None:
            self.adapter = nn.Conv2d(*self.projector_channels, projector_kernel, padding=projector_kernel // 2)

    @property
    def compares_locations(self) -> bool:
        """Cells are compared: anchors matter to regions that may read predictions, all but "everywhere"."""
        return any(part.region != "everywhere" for part in self.parts)

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        name = type(self).__name__
        widths = (source.feature_channels, teacher.feature_channels)
        found = (
            f"{self.source} ({source.family}) has {widths[0]} channels and the teacher ({teacher.family}) {widths[1]}"
        )
        setting = f"model.losses.NAME.projector_channels={list(widths)}"
        if self.projector_channels is None and widths[0] != widths[1]:
            raise ValueError(
                f"{name} needs features of one width, but {found}: set {setting} to train a convolution between them, "
                "set the student's backbone.out_channels to the teacher's, or set this loss to null."
            )
        if self.projector_channels is not None and self.projector_channels != widths:
            raise ValueError(
                f"{name}.projector_channels is {list(self.projector_channels)}, but {found}: set {setting}"
                + (", or null." if widths[0] == widths[1] else ".")
            )

    def prepare_region(self, region: Sequence[Tensor]) -> list[Tensor]:
        """One weight a cell, (N, 1, H, W) per level: the largest of its anchors' (N, A, H, W)."""
        return [weight.amax(dim=1, keepdim=True) for weight in region]

    def feature_maps(self, source: DenseOutput, teacher: DenseOutput, level: int) -> tuple[Tensor, Tensor]:
        """The student's map of a level, through the adapter if there is one, and the teacher's; (N, C, H, W)."""
        student = source.features[level]
        if self.adapter is not None:
            student = self.adapter(student.to(self.adapter.weight.dtype))
        return student, teacher.features[level]

    def cell_weights(self, region: Tensor) -> Tensor:
        """
        ``region`` as :meth:`level_loss` is given it, less its axis of anchors: (..., N, 1, H, W) -> (..., N, H, W).

        Raises:
            ValueError: a region of anchors, not of cells.
        """
        if region.shape[-3] != 1:
            raise ValueError(
                f"{type(self).__name__}.level_loss takes one weight a cell, (N, 1, H, W), found {tuple(region.shape)}: "
                "pass the region through prepare_region."
            )
        return region.squeeze(-3)

    def extra_repr(self) -> str:
        channels = None if self.projector_channels is None else list(self.projector_channels)
        return f"{super().extra_repr()}, projector_channels={channels}, projector_kernel={self.projector_kernel}"


def check_widths(field: str, channels: Any) -> None:
    """
    Raises:
        ValueError: ``channels`` are not two positive whole numbers; ``field`` is the config field to change.
    """
    is_list = isinstance(channels, Sequence) and not isinstance(channels, str) and len(channels) == 2
    if not is_list or not all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in channels):
        raise ValueError(
            f"{field} is {channels!r}, expected the student's channels and the teacher's, such as [128, 256], or null."
        )


def _check_adapter(loss: str, channels: Any, kernel: Any) -> None:
    if channels is not None:
        check_widths(f"{loss}.projector_channels", channels)
    if isinstance(kernel, bool) or kernel not in (1, 3):
        raise ValueError(f"{loss}.projector_kernel is {kernel!r}, expected 1 or 3.")
