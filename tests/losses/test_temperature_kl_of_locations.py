"""A temperature for each location, and one of the student's own."""

import pytest
import torch
from torch import Tensor

from d2kd.losses import temperature_kl
from tests.losses.fake_outputs import random_maps


def random_logits(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    student, teacher = (random_maps(*shape, seed=seed, dtype=dtype) * 3 for seed in range(2))
    return student.requires_grad_(), teacher


def restated_two(student: Tensor, teacher: Tensor, t: Tensor, t_student: Tensor, grad_scale: str, dim: int) -> Tensor:
    """The docstring's formula with a temperature each and the sum over bins, left to autograd."""
    p, q = (teacher.detach() / t).softmax(dim), (student / t_student).softmax(dim)
    kl = (p * (p.log() - q.log())).sum(dim, keepdim=True)
    return (kl * t * t_student if grad_scale == "t2" else kl * torch.ones_like(t * t_student)).squeeze(dim)


def random_temperature(*shape: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 3 * torch.rand(shape, dtype=torch.float64, generator=generator)


#: Of logits (2, 3, 5, 4) with the bins on axis 2: one a location, one a row of axis 1, one in all, and mixtures.
TEMPERATURE_SHAPES = [(2, 3, 1, 4), (3, 1, 1), (1, 1, 1, 4), (4,), (1,), ()]


@pytest.mark.parametrize("grad_scale", ["t2", "none"])
@pytest.mark.parametrize("student_shape", [None, (2, 1, 1, 4), ()])
@pytest.mark.parametrize("shape", TEMPERATURE_SHAPES)
def test_temperatures_of_locations_equal_the_formula_left_to_autograd(shape, student_shape, grad_scale):
    """Value and gradients, those into temperatures that require one included."""
    student, teacher = random_logits(2, 3, 5, 4, dtype=torch.float64)
    inputs = [student, random_temperature(*shape).requires_grad_()]
    if student_shape is not None:
        inputs.append(random_temperature(*student_shape, seed=6).requires_grad_())
    loss = temperature_kl(
        student,
        teacher,
        temperature=inputs[1],
        student_temperature=None if student_shape is None else inputs[2],
        bin_reduction="sum",
        grad_scale=grad_scale,
        dim=2,
    )
    expected = restated_two(student, teacher, inputs[1], inputs[-1], grad_scale, 2)
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
def test_numbers_and_tensors_of_no_axis_are_one(bin_reduction):
    student, teacher = random_logits(6, 17)
    numbers, tensors = (
        temperature_kl(student, teacher, temperature=a, student_temperature=b, bin_reduction=bin_reduction)
        for a, b in ((2.0, 3.0), (torch.tensor(2.0), torch.tensor(3.0)))
    )
    torch.testing.assert_close(numbers, tensors)
    plain = temperature_kl(student, teacher, temperature=2.0, bin_reduction=bin_reduction)
    own = temperature_kl(student, teacher, temperature=2.0, student_temperature=2.0, bin_reduction=bin_reduction)
    assert torch.equal(plain, own)


def test_without_the_factor():
    student, teacher = random_logits(6, 17)
    with_factor, without = (
        temperature_kl(student, teacher, temperature=3.0, student_temperature=2.0, grad_scale=g) for g in ("t2", "none")
    )
    torch.testing.assert_close(with_factor, 6 * without)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (with_factor, without)]
    torch.testing.assert_close(grads[0], 6 * grads[1])


@pytest.mark.parametrize("grad_scale", ["t2", "none"])
def test_gradcheck_with_temperatures(grad_scale):
    student, teacher = random_logits(2, 5, 3, dtype=torch.float64)
    temperatures = random_temperature(2, 1, 3).requires_grad_(), random_temperature(1, 1, 3, seed=6).requires_grad_()

    def kernel(logits: Tensor, t: Tensor, t_student: Tensor) -> Tensor:
        return temperature_kl(
            logits, teacher, temperature=t, student_temperature=t_student, grad_scale=grad_scale, dim=1
        )

    assert torch.autograd.gradcheck(kernel, (student, *temperatures))
    assert torch.autograd.gradcheck(lambda z, t: kernel(z, t, None), (student, temperatures[0]))


def test_a_detached_temperature_is_a_constant_and_kept_once():
    """As is a float32 one of half-precision logits: neither it nor the inputs are copied for the backward pass."""
    student, teacher = (x.detach().bfloat16() for x in random_logits(2, 17, 4, 6))
    student.requires_grad_()
    temperature = teacher.float().std(1, keepdim=True)
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = temperature_kl(student, teacher, temperature=temperature, dim=1).sum()
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in (student, teacher, temperature)}
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    loss.backward()
    assert student.grad.dtype == torch.bfloat16 and temperature.grad is None
