from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from d2kd.losses.laplace_kl import laplace_kl
from tests.losses.fake_outputs import random_maps


def exact(distance: float, temperature: float) -> tuple[float, float]:
    """The formula and its slope in 60 digits."""
    getcontext().prec = 60
    d, t = Decimal(distance), Decimal(temperature)
    shrunk = (-d / t).exp() if d / t < 10**6 else Decimal(0)
    return float(t * (shrunk + d / t - 1)), float(1 - shrunk)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 4e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_value_and_slope_from_the_smallest_to_the_largest_distance(temperature, dtype, rtol):
    """On a grid that is dense where the series takes over, to nearly the last digit."""
    ratios = torch.cat([torch.logspace(-15, 30, 200), torch.linspace(0.001, 0.2, 200)]).to(dtype)
    distances = ratios * temperature
    student = distances.clone().requires_grad_()
    loss = laplace_kl(student[:, None], torch.zeros_like(student)[:, None], temperature=temperature)
    t = torch.tensor(temperature, dtype=dtype).item()
    values, slopes = zip(*(exact(d, t) for d in distances.tolist()))
    torch.testing.assert_close(loss.detach(), torch.tensor(values, dtype=dtype), rtol=rtol, atol=1e-44)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(grad, torch.tensor(slopes, dtype=dtype), rtol=rtol, atol=0)
    assert (grad <= 1).all() and (grad > 0).all()


def test_a_square_near_zero_and_a_slope_of_one_far_away():
    teacher = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    student = torch.tensor([1.0, 1.0 + 1e-4, 6.0, -4.0], dtype=torch.float64, requires_grad=True)
    loss = laplace_kl(student[:, None], teacher[:, None], temperature=0.1)
    torch.testing.assert_close(loss.detach(), torch.tensor([0, 1e-8 / 0.2, 4.9, 4.9]).double(), rtol=1e-3, atol=0)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(grad, torch.tensor([0, 1e-3, 1.0, -1.0]).double(), rtol=1e-3, atol=0)
    assert loss[0] == 0 and grad[0] == 0


def test_is_the_divergence_of_two_laplace_distributions():
    student, teacher = random_maps(20, 4), random_maps(20, 4, seed=1)
    temperature = random_maps(4, seed=2).abs() + 0.1
    laws = (torch.distributions.Laplace(x, temperature) for x in (teacher, student))
    torch.testing.assert_close(
        laplace_kl(student, teacher, temperature=temperature),
        (temperature * torch.distributions.kl_divergence(*laws)).sum(dim=1),
    )


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_gradcheck_with_temperatures(dim):
    student, teacher = random_maps(3, 4, 5).requires_grad_(), random_maps(3, 4, 5, seed=1)
    temperature = (random_maps(student.shape[dim], seed=2).abs() + 0.2).requires_grad_()

    def kernel(params: Tensor) -> Tensor:
        return laplace_kl(params, teacher, temperature=temperature, dim=dim)

    assert torch.autograd.gradcheck(kernel, (student,))
    kernel(student).sum().backward()
    assert temperature.grad is None


def test_a_ratio_that_overflows_is_sound():
    student = torch.tensor([1e38, -1e38], requires_grad=True)
    loss = laplace_kl(student[:, None], torch.zeros(2, 1), temperature=0.01)
    assert loss.tolist() == student.abs().tolist()
    (slope,) = torch.autograd.grad(loss.sum(), student)
    assert slope.tolist() == [1, -1]


def test_keeps_one_map_and_does_not_write_on_it():
    student, teacher = random_maps(2, 3, 4, 6, 5).requires_grad_(), random_maps(2, 3, 4, 6, 5, seed=1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        loss = laplace_kl(student, teacher, temperature=0.3, dim=2)
    assert [x.shape for x in saved] == [student.shape]
    grads = [torch.autograd.grad(loss, student, torch.ones_like(loss), retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads) and grads[0].all()


@pytest.mark.parametrize("crop", [False, True])
def test_a_map_of_many_blocks_is_its_parts(crop):
    student, teacher = (random_maps(1, 3, 4, 240, 250, seed=seed, dtype=torch.float32) for seed in range(2))
    temperature = torch.tensor([0.1, 0.2, 0.5, 1.0])
    if crop:
        student, teacher = student[..., :239, :177], teacher[..., :239, :177]
    student.requires_grad_()
    loss = laplace_kl(student, teacher, temperature=temperature, dim=2)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    for row in range(0, 239, 34):
        part = student[..., row, :].detach().requires_grad_()
        expected = laplace_kl(part, teacher[..., row, :], temperature=temperature, dim=2)
        torch.testing.assert_close(loss[..., row, :], expected)
        torch.testing.assert_close(grad[..., row, :], torch.autograd.grad(expected.sum(), part)[0])


def test_weight_and_reductions():
    student, teacher, weight = random_maps(3, 4, 5), random_maps(3, 4, 5, seed=1), random_maps(3, 5, seed=2)
    plain = laplace_kl(student, teacher, temperature=0.3, dim=1)

    def kernel(**kwargs) -> Tensor:
        return laplace_kl(student, teacher, temperature=0.3, weight=weight, dim=1, **kwargs)

    torch.testing.assert_close(kernel(), weight * plain)
    torch.testing.assert_close(kernel(reduction="sum"), (weight * plain).sum())


def test_computed_in_float32_and_teacher_detached():
    student = random_maps(6, 4, dtype=torch.float32).bfloat16().requires_grad_()
    teacher = random_maps(6, 4, seed=1, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = laplace_kl(student, teacher, temperature=torch.full((4,), 0.1, dtype=torch.float64))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, laplace_kl(student.float(), teacher, temperature=0.1))
    loss.sum().backward()
    assert student.grad.dtype == torch.bfloat16 and teacher.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_non_finite_parameters_are_not_hidden(side, value):
    params = [torch.zeros(3, 4), torch.ones(3, 4)]
    params[side][1, 2] = value
    assert torch.isfinite(laplace_kl(*params, temperature=0.1)).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_params": torch.zeros(2, 3)}, r"\(2, 4\) and \(2, 3\)"),
        ({"student_params": torch.zeros(2, 4, dtype=torch.int64)}, "student_params must be floating.*int64"),
        ({"temperature": torch.ones(2)}, r"temperature must be one.*\(4,\), found \(2,\)"),
        ({"temperature": torch.ones(4, 1)}, r"temperature must be one.*found \(4, 1\)"),
        ({"dim": 2}, "dim must be an axis.*found 2"),
        ({"temperature": torch.ones(4, dtype=torch.int64)}, "temperature must be floating.*int64"),
        ({"weight": torch.zeros(4)}, r"weight.*expected \(2,\), found \(4,\)"),
        ({"weight": torch.zeros(2, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = dict(student_params=torch.zeros(2, 4), teacher_params=torch.zeros(2, 4), temperature=1.0)
    with pytest.raises(ValueError, match=f"laplace_kl: .*{message}"):
        laplace_kl(**{**arguments, **kwargs})
