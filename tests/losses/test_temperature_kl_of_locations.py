"""A temperature for each location."""

import pytest
import torch
from torch import Tensor

from d2kd.losses import temperature_kl
from tests.losses.fake_outputs import random_maps


def random_logits(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    student, teacher = (random_maps(*shape, seed=seed, dtype=dtype) * 3 for seed in range(2))
    return student.requires_grad_(), teacher


def restated(student: Tensor, teacher: Tensor, t: Tensor, dim: int) -> Tensor:
    """The docstring's formula with the sum over bins, left to autograd."""
    p, q = (teacher.detach() / t).softmax(dim), (student / t).softmax(dim)
    return ((p * (p.log() - q.log())).sum(dim, keepdim=True) * t * t).squeeze(dim)


def random_temperature(*shape: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 3 * torch.rand(shape, dtype=torch.float64, generator=generator)


#: Of logits (2, 3, 5, 4) with the bins on axis 2: one a location, one a row of axis 1, one in all, and mixtures.
TEMPERATURE_SHAPES = [(2, 3, 1, 4), (3, 1, 1), (1, 1, 1, 4), (4,), (1,), ()]


@pytest.mark.parametrize("shape", TEMPERATURE_SHAPES)
def test_temperatures_of_locations_equal_the_formula_left_to_autograd(shape):
    """Value and gradients, that into a temperature that requires one included."""
    student, teacher = random_logits(2, 3, 5, 4, dtype=torch.float64)
    inputs = [student, random_temperature(*shape).requires_grad_()]
    loss = temperature_kl(student, teacher, temperature=inputs[1], bin_reduction="sum", dim=2)
    expected = restated(student, teacher, inputs[1], 2)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-14)
    cotangent = torch.randn(loss.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads, expected_grads = (torch.autograd.grad(x, inputs, cotangent) for x in (loss, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-13)


def test_a_temperature_of_each_location_is_that_location_at_this_temperature():
    student, teacher = random_logits(6, 17)
    temperature = random_temperature(6, 1).float()
    loss = temperature_kl(student, teacher, temperature=temperature)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    for row in range(6):
        alone = temperature_kl(student[row], teacher[row], temperature=temperature[row].item())
        torch.testing.assert_close(loss[row], alone)
        torch.testing.assert_close(grad[row], torch.autograd.grad(alone, student)[0][row])


@pytest.mark.parametrize("bin_reduction", ["mean", "sum"])
def test_a_number_and_a_tensor_of_no_axis_are_one(bin_reduction):
    student, teacher = random_logits(6, 17)
    number, tensor = (
        temperature_kl(student, teacher, temperature=t, bin_reduction=bin_reduction) for t in (3.0, torch.tensor(3.0))
    )
    torch.testing.assert_close(number, tensor)


@pytest.mark.parametrize("bin_reduction", ["mean", "sum"])
def test_gradcheck_with_temperatures(bin_reduction):
    student, teacher = random_logits(2, 5, 3, dtype=torch.float64)
    temperature = random_temperature(2, 1, 3).requires_grad_()

    def kernel(logits: Tensor, t: Tensor) -> Tensor:
        return temperature_kl(logits, teacher, temperature=t, bin_reduction=bin_reduction, dim=1)

    assert torch.autograd.gradcheck(kernel, (student, temperature))


def test_a_temperature_of_another_precision_gets_its_own():
    student, teacher = random_logits(2, 5, 3)
    temperature = random_temperature(2, 1, 3).requires_grad_()
    loss = temperature_kl(student, teacher, temperature=temperature, dim=1)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and temperature.grad.dtype == torch.float64 and temperature.grad.any()


def test_a_detached_temperature_is_a_constant():
    """Also a float32 one of half-precision logits."""
    student, teacher = (x.detach().bfloat16() for x in random_logits(2, 17, 4, 6))
    student.requires_grad_()
    temperature = teacher.float().std(1, keepdim=True)
    loss = temperature_kl(student, teacher, temperature=temperature, dim=1).sum()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    loss.backward()
    assert student.grad.dtype == torch.bfloat16 and temperature.grad is None
