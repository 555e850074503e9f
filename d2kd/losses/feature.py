"""What the losses on the pyramid's features share: one weight a cell, and a projector between two widths."""

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

    Where the maps differ in width, the loss owns a projector, a 1x1 convolution from the student's to the teacher's,
    one for all levels, as the pyramid's levels share a head. It is trained with the student and saved under
    ``distillation.losses.NAME.projector``; the student's checkpoint does not have it.

    A subclass implements :meth:`level_loss` on :meth:`feature_maps` and :meth:`cell_weights`.

    Args:
        projector_channels: [student's, teacher's] channels, for the projector between them; None: none. May be equal.
        normalizer: see :class:`DistillationLoss`; "level_locations" is a sum of the levels' weighted means over cells.
        kwargs: see :class:`DistillationLoss`; ``source`` is "student", since a crossed output has no features.

    Raises:
        ValueError: as :class:`DistillationLoss`, and for another source or number of channels.
    """

    task = "feature"

    def __init__(
        self, *, projector_channels: Sequence[int] | None = None, normalizer: str = "level_locations", **kwargs: Any
    ) -> None:
        super().__init__(normalizer=normalizer, **kwargs)
        name = type(self).__name__
        if self.source != "student":
            raise ValueError(f"{name}.source is {self.source!r}, which has no features: expected 'student'.")
        self.projector_channels: tuple[int, int] | None = None
        self.projector: nn.Conv2d | None = None
        if projector_channels is not None:
            ours, theirs = check_widths(f"{name}.projector_channels", projector_channels)
            self.projector_channels = ours, theirs
            self.projector = nn.Conv2d(ours, theirs, kernel_size=1)

    @property
    def reads_predictions(self) -> bool:
        """Features are compared: predictions matter to regions alone, to all but "everywhere"."""
        return any(spec.name != "everywhere" for spec in self.regions)

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        name = type(self).__name__
        widths = (source.feature_channels, teacher.feature_channels)
        found = (
            f"{self.source} ({source.family}) has {widths[0]} channels and the teacher ({teacher.family}) {widths[1]}"
        )
        setting = f"model.losses.NAME.projector_channels={list(widths)}"
        if self.projector_channels is None and widths[0] != widths[1]:
            raise ValueError(
                f"{name} needs features of one width, but {found}: set {setting} to train a projector between them, "
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
        """
        The student's map of a level, through the projector if there is one, and the teacher's; (N, C, H, W).

        Raises:
            ValueError: a dense output without features.
        """
        if source.features is None or teacher.features is None:
            raise ValueError(f"{type(self).__name__} compares features, but one of the dense outputs has none.")
        student = source.features[level]
        if self.projector is not None:
            student = self.projector(student.to(self.projector.weight.dtype))
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
        return f"{super().extra_repr()}, projector_channels={channels}"


def check_widths(field: str, channels: object) -> tuple[int, int]:
    """
    Returns:
        ``channels``.

    Raises:
        ValueError: they are not two positive whole numbers; ``field`` is the config field to change.
    """
    if isinstance(channels, Sequence) and not isinstance(channels, str) and len(channels) == 2:
        ours, theirs = channels
        if all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in (ours, theirs)):
            return ours, theirs
    raise ValueError(
        f"{field} is {channels!r}, expected the student's channels and the teacher's, such as [128, 256], or null."
    )
