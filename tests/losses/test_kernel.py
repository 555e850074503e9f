import pytest
import torch

from d2kd.losses.kernel import check_number, compute_dtype, drop_unweighted, weigh_and_reduce
from tests.losses.fake_outputs import random_maps, sparse_region

SHAPE = (2, 3, 7, 5)


def test_few_locations_are_gathered_with_their_axes_in_place():
    region, bins, logits = sparse_region(*SHAPE), random_maps(2, 3, 4, 6, 7, 5), random_maps(2, 3, 9, 7, 5)
    locations = region.nonzero().tolist()
    kept, kept_bins, kept_logits = drop_unweighted(region, bins, logits)
    assert 1 < len(locations) < region.numel() / 4
    assert kept.shape == (len(locations), 1, 1, 1)
    assert kept_bins.shape == (len(locations), 1, 4, 6, 1, 1) and kept_logits.shape == (len(locations), 1, 9, 1, 1)
    for i, (n, a, h, w) in enumerate(locations):
        assert kept[i].item() == region[n, a, h, w]
        assert torch.equal(kept_bins[i].flatten(), bins[n, a, :, :, h, w].flatten())
        assert torch.equal(kept_logits[i].flatten(), logits[n, a, :, h, w])


def test_gathered_locations_give_their_gradient_back():
    region, bins = sparse_region(*SHAPE), random_maps(2, 3, 4, 6, 7, 5).requires_grad_()
    _, kept = drop_unweighted(region, bins)
    for cotangent in (random_maps(*kept.shape, seed=seed) for seed in range(2)):
        (grad,) = torch.autograd.grad(kept, bins, cotangent, retain_graph=True)
        expected = torch.zeros_like(bins).detach()
        for row, (n, a, h, w) in zip(cotangent, region.nonzero().tolist()):
            expected[n, a, :, :, h, w] = row[0, :, :, 0, 0]
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("count, gathered", [(0, True), (24, True), (25, False), (100, False)])
def test_a_quarter_of_a_level_is_read_whole(count, gathered):
    region = torch.zeros(2, 1, 5, 10)
    region.flatten()[:count] = 1
    maps = random_maps(2, 1, 3, 5, 10)
    kept, kept_maps = drop_unweighted(region, maps)
    assert (kept is region) == (kept_maps is maps) == (not gathered)
    assert kept.count_nonzero() == count


def test_weights_that_are_no_numbers_are_kept():
    region = torch.zeros(1, 1, 4, 4)
    region[0, 0, 1, 2] = float("nan")
    (kept, _) = drop_unweighted(region, region)
    assert kept.shape == (1, 1, 1, 1) and kept.isnan().all()


def test_compute_dtype():
    half, single, double = (torch.zeros(1, dtype=d) for d in (torch.float16, torch.float32, torch.float64))
    assert compute_dtype(half) == compute_dtype(half, single) == torch.float32
    assert compute_dtype(half, double) == torch.float64


def test_weigh_and_reduce():
    loss, weight = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 0], [0.5, 2]], dtype=torch.float64)
    assert weigh_and_reduce("kernel", loss, None, "none") is loss
    assert torch.equal(weigh_and_reduce("kernel", loss, weight, "none"), torch.tensor([[1.0, 0], [1.5, 8]]))
    assert weigh_and_reduce("kernel", loss, weight, "sum").item() == 10.5
    assert weigh_and_reduce("kernel", loss, weight > 0, "sum").item() == 8
    assert weigh_and_reduce("kernel", loss[:0], None, "sum").item() == 0


@pytest.mark.parametrize("bounds", [{}, dict(above=0.5), dict(at_least=0, below=1), dict(above=2, meaning="least")])
@pytest.mark.parametrize("value", [-1, 0, 0.5, 0.7, 1, 3.0, float("nan"), float("inf"), True, "1", None])
def test_a_number_out_of_its_bounds_is_named(value, bounds):
    expected, accepted = {
        (): ("> 0", [0.5, 0.7, 1, 3.0]),
        ("above",): ("> 0.5", [0.7, 1, 3.0]),
        ("at_least", "below"): (">= 0 and < 1", [0, 0.5, 0.7]),
        ("above", "meaning"): ("> least (2)", [3.0]),
    }[tuple(bounds)]
    if not isinstance(value, bool) and value in accepted:
        check_number("Loss", "field", value, **bounds)
    else:
        with pytest.raises(ValueError) as error:
            check_number("Loss", "field", value, **bounds)
        assert str(error.value) == f"Loss.field is {value!r}, expected a finite number {expected}."
