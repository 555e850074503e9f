"""Where the temperatures of DynamicBoxKD come from."""

import pytest
import torch

from d2kd.losses.dynamic_box import group_std_temperatures, weighted_median
from tests.losses.fake_outputs import random_maps
from tests.losses.object_scene import SIZES, A, N, scene


def test_weighted_median_by_a_walk():
    for seed in range(20):
        values = random_maps(3, 15, seed=seed)
        weights = random_maps(15, seed=seed + 100).clamp(min=0)
        maps = [values[:, :7], values[:, 7:]]
        for row, found in enumerate(weighted_median(torch.cat(maps, dim=1), weights)):
            at_most, below = (weights[op(values[row], found)].sum() for op in (torch.le, torch.lt))
            assert found in values[row][weights > 0]
            assert at_most >= weights.sum() / 2 > below


def test_weighted_median_of_few():
    values = torch.tensor([[4.0, 1.0, 2.0, 3.0]])

    def of(*weights: float) -> float:
        return weighted_median(values, torch.tensor(weights)).item()

    assert of(1, 1, 1, 1) == 2.0  # the smaller of the two in the middle
    assert of(1, 0, 0, 0) == 4.0
    assert of(3.1, 1, 1, 1) == 4.0
    assert of(2.9, 1, 1, 1) == 3.0
    assert of(0, 0, 0, 5) == 3.0
    assert of(0, 0, 0, 0) != of(0, 0, 0, 0)
    assert weighted_median(values[:, :0], torch.zeros(0)).isnan().tolist() == [True]


def test_group_std_by_a_loop():
    """Over images, objects, levels and locations; a single location of an object, and none, take the largest."""
    found = scene()
    temperatures = group_std_temperatures(**found, t_min=0.05, t_max=0.6)
    alone, clipped = 0, 0
    for n in range(N):
        groups: dict[tuple, list] = {}
        for level, (h, w) in enumerate(SIZES):
            for a, y, x in torch.cartesian_prod(torch.arange(A), torch.arange(h), torch.arange(w)).tolist():
                if found["positives"][level][n, a, y, x]:
                    key = tuple(found["matched_boxes"][level][n, a, y, x].tolist())
                    groups.setdefault(key, []).append((level, a, y, x))
                else:
                    assert temperatures[level][n, a, :, y, x].tolist() == pytest.approx([0.6] * 4)
        for members in groups.values():
            edges = torch.stack([found["boxes"][level][n, a, y, x] for level, a, y, x in members])
            std = edges.double().std(0, correction=0)
            for level, a, y, x in members:
                x0, y0, x1, y1 = found["anchors"][level][a, y, x].tolist()
                sides = torch.tensor([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
                expected = (std / sides).clamp(0.05, 0.6) if len(members) > 1 else torch.full((4,), 0.6)
                alone += len(members) == 1
                clipped += ((expected == 0.6) | (expected == 0.05)).any().item()
                torch.testing.assert_close(
                    temperatures[level][n, a, :, y, x].double(), expected.double(), rtol=1e-5, atol=0
                )
    assert alone == 1 and 0 < clipped < sum(x.sum() for x in found["positives"])


def test_group_std_without_objects_is_the_largest_everywhere():
    found = scene()
    found["positives"] = [torch.zeros_like(x) for x in found["positives"]]
    for level, (h, w) in zip(group_std_temperatures(**found), SIZES):
        assert torch.equal(level, torch.ones(N, A, 4, h, w))
