import math

import pytest
import torch
from torch import nn

from d2kd.losses.dynamic_box import DynamicBoxKD
from d2kd.losses.dynamic_localization import DynamicLocalizationDistillation
from d2kd.losses.learned_temperature import LearnedTemperature, adversarial_factor
from tests.losses.fake_outputs import output, random_maps


def learned(**fields) -> LearnedTemperature:
    known = dict(owner="Loss", per="scalar", num_levels=None, learn_iters=100, t_start=1.0, t_span=20.0)
    return LearnedTemperature(**{**known, **fields})


def losses(**fields) -> list[tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """Both losses that may learn a temperature, each with maps of two levels to compare."""
    cases = []
    for kind, shape in ((DynamicLocalizationDistillation, (4, 17)), (DynamicBoxKD, (4,))):
        loss = kind(kind="learned", region="teacher_quality", **fields)
        maps = [[random_maps(2, 1, *shape, 3, 5, seed=2 * side + level) for level in range(2)] for side in range(2)]
        cases.append((loss, *(output(box_params=levels) for levels in maps)))
    return cases


def test_factor_falls_from_0_along_a_cosine_to_minus_1_and_stays():
    assert adversarial_factor(0, 100) == 0
    assert adversarial_factor(25, 100) == pytest.approx((math.sqrt(0.5) - 1) / 2)
    assert adversarial_factor(50, 100) == pytest.approx(-0.5)
    assert adversarial_factor(75, 100) == pytest.approx(-(1 + math.sqrt(0.5)) / 2)
    assert [adversarial_factor(i, 100) for i in (100, 101, 10**6)] == [-1, -1, -1]
    assert adversarial_factor(0, 0) == -1


@pytest.mark.parametrize("per, shape", [("scalar", ()), ("edge", (4,)), ("level", (5,))])
def test_starts_at_theta_1(per, shape):
    module = learned(per=per, num_levels=5)
    assert torch.equal(module.theta, torch.ones(shape))
    temperature = module(level=4, iteration=0)
    assert temperature.shape == ((4,) if per == "edge" else ())
    torch.testing.assert_close(temperature.detach(), torch.full(temperature.shape, 1 + 20 / (1 + math.exp(-1))))


def test_stays_between_its_bounds():
    module = learned(t_start=0.5, t_span=2.0)
    for theta, expected in ((-100.0, 0.5), (0.0, 1.5), (100.0, 2.5)):
        nn.init.constant_(module.theta, theta)
        assert module(level=0, iteration=0).item() == pytest.approx(expected)


def test_each_level_has_its_own():
    module = learned(per="level", num_levels=3)
    module.theta.data = torch.tensor([-1.0, 0.0, 1.0])
    temperatures = torch.stack([module(level=level, iteration=10**9) for level in range(3)])
    torch.testing.assert_close(temperatures.detach(), 1 + 20 * torch.tensor([-1.0, 0.0, 1.0]).sigmoid())
    (grad,) = torch.autograd.grad(temperatures[1], module.theta)
    torch.testing.assert_close(grad, torch.tensor([0.0, -5.0, 0.0]))  # minus one times 20 * a quarter


@pytest.mark.parametrize("case", [0, 1], ids=["bins", "boxes"])
@pytest.mark.parametrize("per", ["scalar", "edge", "level"])
def test_gradient_into_theta_is_the_losss_times_the_factor(per, case):
    """By differences of the loss; it flips its sign with the factor, and is zero at the first step."""
    loss, source, teacher = losses(per=per, num_levels=2, learn_iters=100)[case]
    region = [random_maps(2, 1, 3, 5, seed=level + 7).abs() for level in range(2)]
    loss = loss.double()
    theta = loss.learned_temperature.theta

    def value() -> torch.Tensor:
        return loss(source, teacher, region).sum()

    expected, step = torch.zeros_like(theta), 1e-5
    for index in range(theta.numel()):
        values = []
        for sign in (1, -1):
            theta.data.view(-1)[index] += sign * step
            values.append(value().item())
            theta.data.view(-1)[index] -= sign * step
        expected.view(-1)[index] = (values[0] - values[1]) / (2 * step)
    assert (expected != 0).all()
    for iteration, factor in ((0, 0.0), (50, -0.5), (1000, -1.0)):
        loss.iteration = iteration
        (grad,) = torch.autograd.grad(value(), theta)
        torch.testing.assert_close(grad, factor * expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("case", [0, 1], ids=["bins", "boxes"])
def test_one_step_of_descent_raises_the_loss(case):
    """What the reversal is for: theta goes where the loss is harder."""
    loss, source, teacher = losses(learn_iters=0)[case]
    region = [torch.ones(2, 1, 3, 5)] * 2
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    before = loss(source, teacher, region).sum()
    before.backward()
    optimizer.step()
    assert loss(source, teacher, region).sum() > before


@pytest.mark.parametrize("case", [0, 1], ids=["bins", "boxes"])
@pytest.mark.parametrize("per", ["scalar", "edge", "level"])
def test_an_empty_region_stays_connected_to_theta(per, case):
    loss, source, teacher = losses(per=per, num_levels=2)[case]
    loss.iteration = 10**6
    total = loss(source, teacher, [torch.zeros(2, 1, 3, 5)] * 2).sum()
    assert total.item() == 0
    total.backward()
    theta = loss.learned_temperature.theta
    assert torch.equal(theta.grad, torch.zeros_like(theta))


@pytest.mark.parametrize("case", [0, 1], ids=["bins", "boxes"])
def test_theta_is_saved_and_resumed(case):
    first, source, teacher = losses(per="level", num_levels=2, learn_iters=0)[case]
    first.learned_temperature.theta.data = torch.tensor([-0.5, 2.0])
    state = first.state_dict()
    assert list(state) == ["learned_temperature.theta"]
    second, *_ = losses(per="level", num_levels=2, learn_iters=0)[case]
    region = [torch.ones(2, 1, 3, 5)] * 2
    assert not torch.equal(first(source, teacher, region), second(source, teacher, region))
    second.load_state_dict(state)
    assert torch.equal(first(source, teacher, region), second(source, teacher, region))


@pytest.mark.parametrize("case", [0, 1], ids=["bins", "boxes"])
def test_too_few_levels_are_named(case):
    loss, source, teacher = losses(per="level", num_levels=1)[case]
    with pytest.raises(ValueError, match=f"{type(loss).__name__}.num_levels is 1, but the detectors have a level 1"):
        loss(source, teacher, [torch.ones(2, 1, 3, 5)] * 2)


@pytest.mark.parametrize("kind", [DynamicLocalizationDistillation, DynamicBoxKD])
@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(per="image"), "per is 'image', expected one of scalar, edge, level"),
        (dict(per="level"), "num_levels is None, expected the number of pyramid levels"),
        (dict(per="level", num_levels=0), "num_levels is 0, expected a whole number of at least 1"),
        (dict(num_levels=2.5), "num_levels is 2.5, expected a whole number"),
        (dict(learn_iters=-1), "learn_iters is -1, expected a whole number of at least 0"),
        (dict(learn_iters=True), "learn_iters is True, expected a whole number"),
    ],
)
def test_arguments_that_mean_nothing_are_named(kind, fields, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}.{message}"):
        kind(kind="learned", **fields)


@pytest.mark.parametrize("fields, message", [(dict(t_start=0), "t_start is 0"), (dict(t_span=-1.0), "t_span is -1.0")])
def test_a_span_that_means_nothing_is_named(fields, message):
    with pytest.raises(ValueError, match=f"DynamicLocalizationDistillation.{message}, expected a finite number > 0"):
        DynamicLocalizationDistillation(kind="learned", **fields)
