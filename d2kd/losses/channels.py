"""Feature maps channel by channel: blocks that stay in the cache, and each channel's statistics."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["STD_EPS", "center", "center_again", "channel_blocks", "first_values", "take", "through_statistics"]

_OVER = (0, 2, 3)

#: Added to standard deviations, in the unit of the features.
STD_EPS = 1e-6

# Elements of one map in a block. On a CPU what one thread makes of them stays in its cache, which halves the time;
# elsewhere a block is large enough to hide the launch of its kernels. Both bound the memory that a kernel needs.
_CPU_ELEMENTS, _ELEMENTS = 2**18, 2**24


def channel_blocks(*maps: Tensor) -> list[slice]:
    """
    Slices of the channels of ``maps`` (N, C, H, W), to be worked through one by one; none if the first is empty.

    All channels at once where the maps are channels-last: each slice would read every line of the memory.
    """
    if not maps[0].numel():
        return []
    if all(_is_channels_last(x) for x in maps):
        return [slice(None)]
    elements = _CPU_ELEMENTS * torch.get_num_threads() if maps[0].device.type == "cpu" else _ELEMENTS
    width = max(elements // max(x[:, 0].numel() for x in maps), 1)
    return [slice(start, start + width) for start in range(0, maps[0].shape[1], width)]


def take(features: Tensor, block: slice, dtype: torch.dtype) -> Tensor:
    """``features[:, block]`` in ``dtype``; a copy where these are few of the channels of a channels-last map."""
    x = features[:, block].to(dtype)
    return x.contiguous() if _is_channels_last(features) and x.shape != features.shape else x


def _is_channels_last(x: Tensor) -> bool:
    return x.stride(1) < x.stride(3)


def first_values(features: Tensor) -> Tensor:
    """Each channel's first value, (1, C, 1, 1)."""
    return features[:1, :, :1, :1]


def center(features: Tensor, correction: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """
    Each channel less its mean over images and cells.

    Args:
        features: (N, C, H, W).
        correction: 1: the unbiased standard deviation; 0: the population's.

    Returns:
        a new tensor of the shape of ``features``, and each channel's mean less its first value, and standard deviation,
        (1, C, 1, 1). Of a channel that is constant or has one value, all three are exactly zero.
    """
    # Less one of its values first: this is exact for small deviations from a large mean, and zero for a constant
    # channel, which no computed mean is sure to be. One value that is not finite makes all of the channel NaN.
    # Not torch.std_mean, whose recurrence takes ten times as long on a CPU.
    centered = features - first_values(features)
    offset = centered.mean(dim=_OVER, keepdim=True)
    variance = centered.sub_(offset).square().sum(dim=_OVER, keepdim=True).div_(_degrees(features, correction))
    return centered, offset, variance.sqrt_()


def center_again(features: Tensor, offset: Tensor) -> Tensor:
    """What :func:`center` returned first, from what it returned second."""
    return (features - first_values(features)).sub_(offset)


def through_statistics(grad: Tensor, centered: Tensor, std: Tensor, scale: Tensor, correction: int = 1) -> Tensor:
    """
    The gradient by x, of the shape of ``grad``, from that by ``y = centered * scale``, where ``scale`` is inversely
    proportional to ``std + STD_EPS``:

        scale * (grad - mean(grad)) - centered * sum(grad * centered) * scale / (degrees * std * (std + STD_EPS))
    """
    # Batch norm's, w r (grad - mean(grad) - centered * mean(grad * centered) r^2), in one pass of torch's.
    product = std * (std + STD_EPS)
    r = (product * (_degrees(grad, correction) / grad[:, 0].numel())).rsqrt_()
    # A constant channel's deviation has no slope: centered is 0, and must not meet 1 / 0.
    r.masked_fill_(product == 0, 1)
    weight, zero, r = ((scale / r).flatten(), torch.zeros_like(r).flatten(), r.flatten())
    result: Tensor = torch.ops.aten.native_batch_norm_backward(
        grad, centered, weight, None, None, zero, r, True, 0.0, [True, False, False]
    )[0]
    return result


def _degrees(features: Tensor, correction: int) -> int:
    """Degrees of freedom of a channel's deviation; 1 where there are none."""
    return max(features.shape[0] * features.shape[2] * features.shape[3] - correction, 1)
