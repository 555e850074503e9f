import math

import pytest
import torch
from torch import nn

from d2kd.losses.dynamic_localization import DynamicLocalizationDistillation
from d2kd.losses.learned_temperature import LearnedTemperature, adversarial_factor
from tests.losses.fake_outputs import output, random_maps


def learned(**fields) -> LearnedTemperature:
    return LearnedTemperature(**{**dict(learn_iters=100, t_start=1.0, t_span=20.0), **fields})


def build(**fields) -> DynamicLocalizationDistillation:
    return DynamicLocalizationDistillation(kind="learned", region="teacher_quality", **fields)


def outputs() -> list:
    """Maps of two levels to compare."""
    maps = [[random_maps(2, 1, 4, 17, 3, 5, seed=2 * side + level) for level in range(2)] for side in range(2)]
    return [output(box_params=levels) for levels in maps]


def test_factor_falls_from_0_along_a_cosine_to_minus_1_and_stays():
    assert adversarial_factor(0, 100) == 0
    assert adversarial_factor(25, 100) == pytest.approx((math.sqrt(0.5) - 1) / 2)
    assert adversarial_factor(50, 100) == pytest.approx(-0.5)
    assert adversarial_factor(75, 100) == pytest.approx(-(1 + math.sqrt(0.5)) / 2)
    assert [adversarial_factor(i, 100) for i in (100, 101, 10**6)] == [-1, -1, -1]
    assert adversarial_factor(0, 0) == -1


def test_starts_at_theta_1():
    module = learned()
    assert module.theta.shape == () and module.theta.item() == 1
    assert module(0).shape == () and module(0).item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))


def test_stays_between_its_bounds():
    module = learned(t_start=0.5, t_span=2.0)
    for theta, expected in ((-100.0, 0.5), (0.0, 1.5), (100.0, 2.5)):
        nn.init.constant_(module.theta, theta)
        assert module(0).item() == pytest.approx(expected)


@pytest.mark.parametrize("iteration, factor", [(0, 0.0), (50, -0.5), (1000, -1.0)])
def test_gradient_into_theta_is_the_losss_times_the_factor(iteration, factor):
    """By differences of the loss; it flips its sign with the factor, and is zero at the first step."""
    source, teacher = outputs()
    region = [random_maps(2, 1, 3, 5, seed=level + 7).abs() for level in range(2)]
    loss, step = build(learn_iters=100).double(), 1e-5
    loss.iteration = iteration
    theta = loss.learned_temperature.theta

    def value() -> torch.Tensor:
        return loss(source, teacher, region).sum()

    values = []
    for sign in (1, -1):
        nn.init.constant_(theta, 1 + sign * step)
        values.append(value().item())
    nn.init.constant_(theta, 1)
    expected = torch.tensor((values[0] - values[1]) / (2 * step), dtype=torch.float64)
    assert expected != 0
    (grad,) = torch.autograd.grad(value(), theta)
    torch.testing.assert_close(grad, factor * expected, rtol=1e-5, atol=1e-9)


def test_one_step_of_descent_raises_the_loss():
    """What the reversal is for: theta goes where the loss is harder."""
    loss, (source, teacher), region = build(learn_iters=0), outputs(), [torch.ones(2, 1, 3, 5)] * 2
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    before = loss(source, teacher, region).sum()
    before.backward()
    optimizer.step()
    assert loss(source, teacher, region).sum() > before


def test_an_empty_region_stays_connected_to_theta():
    loss, (source, teacher) = build(), outputs()
    loss.iteration = 10**6
    total = loss(source, teacher, [torch.zeros(2, 1, 3, 5)] * 2).sum()
    assert total.item() == 0
    total.backward()
    assert loss.learned_temperature.theta.grad.item() == 0


def test_theta_is_saved_and_resumed():
    first, second, (source, teacher), region = build(), build(), outputs(), [torch.ones(2, 1, 3, 5)] * 2
    nn.init.constant_(first.learned_temperature.theta, -0.5)
    state = first.state_dict()
    assert list(state) == ["learned_temperature.theta"]
    assert not torch.equal(first(source, teacher, region), second(source, teacher, region))
    second.load_state_dict(state)
    assert torch.equal(first(source, teacher, region), second(source, teacher, region))
