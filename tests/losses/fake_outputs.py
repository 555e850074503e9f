"""Stand-ins for what d2kd.modeling gives a loss, whose tests must not need detectron2."""

from types import SimpleNamespace

import torch
from torch import Tensor


def output(*, rectified: bool = False, **maps: list[Tensor]) -> SimpleNamespace:
    """A dense output of the maps named, lists per level."""
    return SimpleNamespace(class_dim=2, rectified=rectified, **maps)


def spec(family: str = "GFL", **fields) -> SimpleNamespace:
    """An output's specification: GFL's, but for the fields named."""
    known = dict(num_classes=3, bins=17, centerness=False, feature_channels=256)
    return SimpleNamespace(family=family, **{**known, **fields})


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sparse_region(*shape: int, share: float = 0.1) -> Tensor:
    """Random weights, all zero but for a share of them, and never all zero."""
    generator = torch.Generator().manual_seed(0)
    region = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < share)
    region.flatten()[0] = 0.5
    return region
