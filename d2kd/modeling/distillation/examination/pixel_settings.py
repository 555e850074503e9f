"""The pixel statistics and channel orders that detectors are commonly trained with, to be tried on a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PixelSetting", "apply_setting", "known_settings", "reorder"]

#: Mean and standard deviation, blue first: ImageNet's, with and without the latter; none; to [0, 1]; to [-1, 1].
_KNOWN = (
    ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
    ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
)


@dataclass(frozen=True)
class PixelSetting:
    """
    How a detector's images are made.

    Attributes:
        input_format: "BGR" or "RGB".
        mean, std: of its channels, in that order.
    """

    input_format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def is_near(self, other: PixelSetting) -> bool:
        """Whether the two differ by less than a hundredth of a standard deviation."""
        return self.input_format == other.input_format and all(
            abs(a - b) <= 0.01 * s and abs(s - t) <= 0.01 * s
            for a, b, s, t in zip(self.mean, other.mean, self.std, other.std)
        )

    def beside(self, other: PixelSetting) -> list[str]:
        """``field=value`` of those that differ from the other's."""
        found = [f"input_format={self.input_format}"] if self.input_format != other.input_format else []
        statistics = (("pixel_mean", self.mean, other.mean), ("pixel_std", self.std, other.std))
        return found + [f"{name}=[{','.join(f'{x:g}' for x in a)}]" for name, a, b in statistics if a != b]


def known_settings(present: PixelSetting) -> list[PixelSetting]:
    """The known statistics in the order of ``present``, without those that it has."""
    if len(present.mean) != 3:
        return []
    step = 1 if present.input_format == "BGR" else -1
    known = [PixelSetting(present.input_format, mean[::step], std[::step]) for mean, std in _KNOWN]
    return [x for x in known if not x.is_near(present)]


def reorder(setting: PixelSetting) -> list[PixelSetting]:
    """The same with the other channel order: with its statistics as they stand, and with theirs reversed too."""
    if len(setting.mean) != 3:
        return []
    other = "RGB" if setting.input_format == "BGR" else "BGR"
    found = [PixelSetting(other, setting.mean, setting.std)]
    if setting.mean != setting.mean[::-1] or setting.std != setting.std[::-1]:
        found.append(PixelSetting(other, setting.mean[::-1], setting.std[::-1]))
    return found


def apply_setting(image: Tensor, image_format: str, setting: PixelSetting, present: PixelSetting) -> Tensor:
    """
    An image, in the order of ``present``, that a detector normalises by ``present`` to what ``setting`` would make of
    ``image``.

    Args:
        image: (C, H, W), its channels in the order ``image_format``.
    """
    if image_format != setting.input_format:
        image = image.flip(0)
    mean, std, own_mean, own_std = (
        torch.tensor(values, device=image.device).view(-1, 1, 1)
        for values in (setting.mean, setting.std, present.mean, present.std)
    )
    return (image - mean) / std * own_std + own_mean
