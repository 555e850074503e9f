import math

import pytest
import torch

from d2kd.losses.edge_temperatures import entropy_temperature, sharpness_temperatures, std_temperature
from tests.losses.fake_outputs import random_maps


def test_std_is_the_populations_and_clipped():
    bins = torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.2, 0.4], [0.0, 200.0, 400.0]])
    expected = torch.tensor([[math.sqrt(8 / 3)], [1.0], [10.0]])
    torch.testing.assert_close(std_temperature(bins), expected)
    torch.testing.assert_close(
        std_temperature(bins, kappa=0.5, t_min=0.01)[:2], torch.tensor([[0.5], [0.05]]) * expected[0]
    )


@pytest.mark.parametrize("function", [std_temperature, entropy_temperature])
def test_rises_with_the_scale_of_the_logits_from_one_bound_to_the_other(function):
    bins = random_maps(50, 17)
    temperatures = torch.stack([function(bins * scale, t_min=0.5, t_max=7.0) for scale in (0, 0.6, 1, 2, 4, 1e6)])
    assert temperatures.shape == (6, 50, 1)
    torch.testing.assert_close(temperatures[0], torch.full((50, 1), 0.5, dtype=torch.float64))
    assert (temperatures[1:5].diff(dim=0) > 0).all()
    torch.testing.assert_close(temperatures[5], torch.full((50, 1), 7.0, dtype=torch.float64))


def test_entropy_is_the_distributions():
    bins = random_maps(20, 17)
    entropy = torch.distributions.Categorical(logits=bins).entropy()[:, None]
    torch.testing.assert_close(entropy_temperature(bins), 1 + 9 * (1 - entropy / math.log(17)))
    two = torch.tensor([[0.0, 0.0, -1e9, -1e9]])  # of four bins, two are equally likely
    assert entropy_temperature(two, t_min=2.0, t_max=4.0).item() == pytest.approx(3.0)


def test_sharpness_softens_the_sharper_more():
    teacher, student = torch.tensor([[6.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    x, y = 4.0, 2.0  # above the mean
    temperatures = [t.item() for t in sharpness_temperatures(teacher, student, tau=4.0)]
    assert temperatures == pytest.approx([2 * x / (x + y) * 4, 2 * y / (x + y) * 4])
    equal = sharpness_temperatures(teacher, teacher, tau=3.0)
    assert [t.item() for t in equal] == [3.0, 3.0]


def test_sharpness_rises_with_the_scale_of_its_own_logits_to_the_bounds():
    teacher, student = random_maps(50, 17), random_maps(50, 17, seed=1)
    scales = (0, 0.7, 1, 1.5, 3, 1e6)
    ours, theirs = zip(*(sharpness_temperatures(teacher * s, student, tau=4.0, t_min=0.1, t_max=7.5) for s in scales))
    ours, theirs = torch.stack(ours), torch.stack(theirs)
    assert (ours[0] == 0.1).all() and (theirs[0] == 7.5).all()
    assert (ours[1:5].diff(dim=0) > 0).all() and (theirs[1:5].diff(dim=0) < 0).all()
    assert (ours[5] == 7.5).all() and (theirs[5] == 0.1).all()
    torch.testing.assert_close(ours[1:5] + theirs[1:5], torch.full((4, 50, 1), 8.0, dtype=torch.float64))


def test_flat_edges_are_both_at_tau_or_at_the_bounds():
    flat, sharp = torch.full((1, 5), 0.3), torch.tensor([[3.0, 0, 0, 0, 0]])
    assert [t.item() for t in sharpness_temperatures(flat, flat + 7, tau=4.0)] == [4.0, 4.0]
    assert [t.item() for t in sharpness_temperatures(flat, sharp, tau=4.0)] == [1.0, 8.0]
    assert [t.item() for t in sharpness_temperatures(sharp, flat, tau=6.0)] == [10.0, 1.0]


@pytest.mark.parametrize("dim", [0, 1, 3, -2])
def test_any_axis_of_any_view(dim):
    teacher, student = (3 * random_maps(2, 5, 3, 4, seed=seed).transpose(1, 2) for seed in range(2))
    last = [x.movedim(dim, -1) for x in (teacher, student)]
    for function in (std_temperature, entropy_temperature):
        torch.testing.assert_close(function(teacher, dim=dim).movedim(dim, -1), function(last[0]))
    for t, expected in zip(sharpness_temperatures(teacher, student, dim=dim), sharpness_temperatures(*last)):
        torch.testing.assert_close(t.movedim(dim, -1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    teacher, student = (10 * random_maps(6, 17, seed=seed, dtype=torch.float32).to(dtype) for seed in range(2))
    for function in (std_temperature, entropy_temperature):
        assert torch.equal(function(teacher), function(teacher.float()))
    low, full = sharpness_temperatures(teacher, student), sharpness_temperatures(teacher.float(), student.float())
    for t, expected in zip(low, full):
        assert t.dtype == torch.float32
        torch.testing.assert_close(t, expected)


def test_constants_of_the_step():
    bins = random_maps(3, 17).requires_grad_()
    temperatures = [std_temperature(bins), entropy_temperature(bins), *sharpness_temperatures(bins, bins)]
    assert not any(t.requires_grad for t in temperatures)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_not_hidden(value):
    bins = random_maps(3, 17)
    bins[1, 2] = value
    for t in (std_temperature(bins), entropy_temperature(bins), *sharpness_temperatures(bins, bins)):
        assert torch.isfinite(t).flatten().tolist() == [True, False, True]


def test_the_entropy_of_one_bin_is_refused():
    with pytest.raises(ValueError, match=r"entropy_temperature: an edge needs two bins at least, found \(3, 1\)"):
        entropy_temperature(torch.zeros(3, 1))
