"""pearson_kd: brute force, invariances, gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor

from d2kd.losses import pearson_kd
from tests.losses.fake_outputs import random_maps

#: So large that the constant added to variances does not show.
SCALE = 1e4


def correlation(a: Tensor, b: Tensor) -> float:
    return np.corrcoef(a.numpy(), b.numpy())[0, 1]


def test_location_by_location():
    student, teacher = SCALE * (random_maps(9, 7) * 3 + 5), SCALE * random_maps(9, 7, seed=1)
    expected = torch.tensor([1 - correlation(a, b) for a, b in zip(student, teacher, strict=True)])
    torch.testing.assert_close(pearson_kd(student, teacher), expected.double(), rtol=1e-7, atol=0)


def test_the_constant_is_added_to_the_variances():
    """Logits so small that it shows, by the docstring's formula."""
    student, teacher = 1e-2 * random_maps(9, 7), 1e-2 * random_maps(9, 7, seed=1)
    scores = [
        (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt() for x in (student, teacher)
    ]
    expected = (scores[0] - scores[1]).square().mean(1) / 2
    torch.testing.assert_close(pearson_kd(student, teacher), expected, rtol=1e-12, atol=0)


def test_the_classes_of_a_location_stay_together_in_a_large_map():
    """One image of more elements than are worked on at a time, with the classes outermost in memory."""
    maps = [random_maps(1, 80, 50, 60, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 1)]
    rows = [x.detach().movedim(1, -1).reshape(-1, 80).contiguous().requires_grad_() for x in maps]
    found, expected = pearson_kd(*maps, dim=1), pearson_kd(*rows)
    torch.testing.assert_close(found.flatten(), expected)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x, (student, _) in ((found, maps), (expected, rows))]
    torch.testing.assert_close(grads[0].movedim(1, -1).reshape(-1, 80), grads[1])


@pytest.mark.parametrize("side", [0, 1])
def test_scale_and_shift_of_either_side_change_nothing(side):
    logits = [SCALE * random_maps(30, 7), SCALE * random_maps(30, 7, seed=1)]
    expected = pearson_kd(*logits)
    logits[side] = logits[side] * 0.3 + 4 * SCALE
    torch.testing.assert_close(pearson_kd(*logits), expected, rtol=1e-9, atol=0)
    logits[side] = -logits[side]
    assert not torch.allclose(pearson_kd(*logits), expected, rtol=0.1)


def test_gradcheck():
    """Of the student alone; also of a location whose classes are all but equal, held by the constant."""
    student, teacher = random_maps(4, 5), random_maps(4, 5, seed=1).requires_grad_()
    student[2] = 1 + 1e-3 * student[2]
    weight = random_maps(4, seed=2).square()

    def kernel(z: Tensor) -> Tensor:
        return pearson_kd(z, teacher, weight=weight)

    student.requires_grad_()
    assert torch.autograd.gradcheck(kernel, (student,))
    assert torch.autograd.grad(kernel(student).sum(), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_logits_that_are_all_equal(constant):
    student, teacher = random_maps(6, 5), random_maps(6, 5, seed=1)
    if constant != "teacher":
        student = torch.full_like(student, -4.59)
    if constant != "student":
        teacher = torch.full_like(teacher, -2.5)
    student.requires_grad_()
    loss = pearson_kd(student, teacher)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all() and grad.isfinite().all()
    if constant == "both":
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12)
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)
    else:
        assert (loss > 1e-3).all()
        assert 0 < grad.abs().max() < 1e-5**-0.5  # each standardised logit pulls with less than 1
        torch.testing.assert_close(loss.mean().item(), 0.5, rtol=1e-4, atol=0)


def test_weight_and_reductions():
    student, teacher, weight = random_maps(2, 5, 7), random_maps(2, 5, 7, seed=1), random_maps(2, 7, seed=2).square()
    locations = pearson_kd(student, teacher, dim=1)
    torch.testing.assert_close(pearson_kd(student, teacher, weight=weight, dim=1), weight * locations)
    total = pearson_kd(student, teacher, weight=weight, dim=1, reduction="sum")
    torch.testing.assert_close(total, (weight * locations).sum())


def test_weights_that_are_all_zero():
    student, teacher = random_maps(6, 5).requires_grad_(), random_maps(6, 5, seed=1)
    loss = pearson_kd(student, teacher, weight=torch.zeros(6), reduction="sum")
    (grad,) = torch.autograd.grad(loss, student)
    assert loss == 0 and not grad.any()


def test_any_view_of_a_map():
    """A head's map seen by anchors, in either memory layout, against rows of classes."""
    student, teacher = (
        random_maps(2, 12, 5, 6, seed=seed).to(memory_format=layout)
        for seed, layout in ((0, torch.channels_last), (1, torch.contiguous_format))
    )
    student.requires_grad_()
    weight = random_maps(2, 3, 5, 6, seed=2).square()
    views = (x.view(2, 3, 4, 5, 6) for x in (student, teacher))
    loss = pearson_kd(*views, weight=weight, dim=2)
    rows = (x.view(2, 3, 4, 5, 6).movedim(2, -1).reshape(-1, 4) for x in (student, teacher))
    expected = pearson_kd(*rows, weight=weight.reshape(-1))
    torch.testing.assert_close(loss.flatten(), expected)
    grads = (torch.autograd.grad(x.sum(), student)[0] for x in (loss, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    student, teacher = (random_maps(20, 6, seed=seed).to(dtype) for seed in (0, 1))
    expected = pearson_kd(student.float(), teacher.float())
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pearson_kd(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert grad.dtype == dtype and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_logits": torch.zeros(2, 9)}, r"\(2, 7\) and \(2, 9\)"),
        ({"student_logits": torch.zeros(2, 7, dtype=torch.int64)}, "must be floating.*int64"),
        (
            {"student_logits": torch.zeros(2, 0), "teacher_logits": torch.zeros(2, 0)},
            r"axis -1 must not be empty.*\(2, 0\)",
        ),
        ({"weight": torch.zeros(2, 1)}, r"weight.*expected \(2,\), found \(2, 1\)"),
        ({"weight": torch.zeros(2, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
        ({"dim": 2}, "dim must be an axis.*found 2"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student_logits": torch.zeros(2, 7), "teacher_logits": torch.zeros(2, 7), **kwargs}
    with pytest.raises(ValueError, match=f"pearson_kd: .*{message}"):
        pearson_kd(**arguments)
