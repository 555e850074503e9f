from pathlib import Path

import numpy as np
import pytest
import torch

from d2kd.losses.standardize import standardized_difference
from tests.losses.fake_outputs import random_maps

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_pkd.npz")
PRECISIONS = pytest.mark.parametrize(
    "dtype, suffix, rtol, atol",
    [(torch.float32, "f32", 1e-5, 1e-5), (torch.float64, "f64", 1e-9, 1e-11)],
    ids=["f32", "f64"],
)
WEIGHT = 6  # PKD's, in the golden numbers


def scores(x, correction=1):
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), correction=correction, keepdim=True)
    return (x - mean) / (std + 1e-6)


def restated(student, teacher, correction=1):
    """The docstring's formula with unweighted cells, left to autograd; (N, C, H, W)."""
    return (scores(student, correction) - scores(teacher.detach(), correction)).square() / 2


@PRECISIONS
def test_golden_pkd(dtype, suffix, rtol, atol):
    """Channel 2 of the student is constant there."""
    student, teacher = (torch.from_numpy(GOLDEN[f"pkd_{name}"]).to(dtype) for name in ("student", "teacher"))
    student.requires_grad_()
    cells = WEIGHT * standardized_difference(student, teacher)
    elements = torch.from_numpy(GOLDEN[f"pkd_none__out_{suffix}"])
    torch.testing.assert_close(cells.detach(), elements.mean(1), rtol=rtol, atol=atol)
    for loss, name in (
        # Theirs is the sum over elements where ours is a mean over channels.
        (cells.sum() * student.shape[1], "pkd_none"),
        (cells.mean(), "pkd_mean"),
    ):
        (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
        assert loss.dtype == grad.dtype == dtype
        expected = torch.from_numpy(GOLDEN[f"{name}__out_{suffix}"]).sum()
        torch.testing.assert_close(loss.detach(), expected, rtol=rtol, atol=atol)
        expected = torch.from_numpy(GOLDEN[f"{name}__grad_{suffix}"])
        for ours, theirs in zip(grad.unbind(1), expected.unbind(1), strict=True):
            # Of the channel's scale: 1e7 in the constant one.
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 10 * theirs.abs().max().item())


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("scale", [1, 1e-6], ids=["unit", "as_small_as_the_constant"])
def test_equals_the_formula_left_to_autograd(correction, scale):
    student, teacher = random_maps(2, 5, 3, 4) * scale, (3 * random_maps(2, 5, 3, 4, seed=1) + 2) * scale
    student.requires_grad_()
    cells, cotangent = random_maps(2, 3, 4, seed=3), random_maps(2, 3, 4, seed=4) * scale
    kwargs = dict(weight=cells, correction=correction)
    loss = standardized_difference(student, teacher, **kwargs)
    expected = restated(student, teacher, correction).mean(1) * cells
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(loss, student, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, student, cotangent)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(standardized_difference(student, teacher, reduction="sum", **kwargs), expected.sum())


@pytest.mark.parametrize("correction", [0, 1])
def test_gradcheck(correction):
    student, teacher = random_maps(2, 3, 2, 2).requires_grad_(), random_maps(2, 3, 2, 2, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: standardized_difference(x, teacher, correction=correction), (student,), atol=1e-7
    )


@pytest.mark.parametrize("correction", [0, 1])
def test_the_mean_is_one_less_pearson_correlation(correction):
    student, teacher = random_maps(2, 4, 5, 6), random_maps(2, 4, 5, 6, seed=1)
    rows = (x.movedim(1, 0).flatten(1).numpy() for x in (student, teacher))
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(*rows, strict=True)]
    cells = 2 * 5 * 6
    expected = (1 - np.mean(correlations)) * (cells - correction) / cells
    loss = standardized_difference(student, teacher, correction=correction).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_scale_and_offset_of_a_channel_do_not_matter():
    student, teacher = random_maps(2, 4, 5, 6), random_maps(2, 4, 5, 6, seed=1)
    scale, offset = random_maps(1, 4, 1, 1, seed=2).exp(), random_maps(1, 4, 1, 1, seed=3)
    loss = standardized_difference(student, teacher)
    torch.testing.assert_close(standardized_difference(scale * student + offset, teacher), loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(standardized_difference(student, scale * teacher + offset), loss, rtol=1e-4, atol=1e-6)
    # but a sign does: correlation -1
    opposite = standardized_difference(-student, student, correction=0).mean()
    assert opposite.item() == pytest.approx(2, rel=1e-4)


def test_equal_maps_give_no_loss_and_no_gradient():
    student = random_maps(2, 4, 5, 6, dtype=torch.float32).requires_grad_()
    loss = standardized_difference(student, student.detach().clone())
    loss.sum().backward()
    assert not loss.any() and not student.grad.any()


@pytest.mark.parametrize("correction", [0, 1])
def test_a_single_value_a_channel(correction):
    """Its unbiased deviation is 0 / 0."""
    student, teacher = random_maps(1, 4, 1, 1).requires_grad_(), random_maps(1, 4, 1, 1, seed=1)
    loss = standardized_difference(student, teacher, correction=correction)
    loss.sum().backward()
    assert loss.tolist() == [[[0]]]
    assert student.grad.shape == student.shape and not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_channel(value, dtype):
    """Exactly zero scores: what rounding leaves of its mean, divided by eps, would be large."""
    student, teacher = (random_maps(2, 3, 40, 50, seed=seed, dtype=dtype) for seed in (0, 1))
    student[:, 1] = value
    constant = student[:, 1:2]
    assert not standardized_difference(constant, constant + 1).any()
    student.requires_grad_()
    loss = standardized_difference(student, teacher)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(student.grad).all()
    torch.testing.assert_close(student.grad[:, 1], -scores(teacher)[:, 1] / 1e-6 / 3, rtol=1e-3, atol=1)
    teacher[:, 2] = value
    others = standardized_difference(student, teacher)
    assert torch.isfinite(others).all()


def test_computed_in_float32_and_teacher_detached():
    """The sum of the squares overflows float16."""
    student = (300 * random_maps(1, 2, 8, 8)).half().requires_grad_()
    teacher = random_maps(1, 2, 8, 8, seed=1).half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = standardized_difference(student, teacher)
    torch.testing.assert_close(loss, restated(student.float(), teacher.float()).mean(1), rtol=1e-4, atol=1e-5)
    loss.sum().backward()
    assert student.grad.dtype == torch.float16 and student.grad.any()
    assert teacher.grad is None
    assert not standardized_difference(student.detach(), teacher).requires_grad


def test_keeps_only_the_two_maps_for_the_backward_pass():
    student, teacher = random_maps(2, 8, 6, 7).requires_grad_(), random_maps(2, 8, 6, 7, seed=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        standardized_difference(student, teacher)
    large = {x.data_ptr() for x in kept if x.numel() > 2 * 8}
    assert large == {student.data_ptr(), teacher.data_ptr()}


def test_inputs_are_left_alone():
    student, teacher = random_maps(2, 3, 4, 5).requires_grad_(), random_maps(2, 3, 4, 5, seed=1)
    copies = student.detach().clone(), teacher.clone()
    standardized_difference(student, teacher).sum().backward()
    assert torch.equal(student, copies[0]) and torch.equal(teacher, copies[1])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher": torch.zeros(2, 4, 5, 6)}, r"\(2, 3, 5, 6\) and \(2, 4, 5, 6\)"),
        ({"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3)}, r"\(N, C, H, W\)"),
        ({"student": torch.zeros(2, 0, 5, 6), "teacher": torch.zeros(2, 0, 5, 6)}, r"axis 1 .*\(2, 0, 5, 6\)"),
        ({"student": torch.zeros(2, 3, 5, 6, dtype=torch.int64)}, "student must be floating.*int64"),
        ({"weight": torch.zeros(2, 1, 5, 6)}, r"weight.*expected \(2, 5, 6\), found \(2, 1, 5, 6\)"),
        ({"weight": torch.zeros(2, 5, 6, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction.*'mean'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student": torch.zeros(2, 3, 5, 6), "teacher": torch.zeros(2, 3, 5, 6), **kwargs}
    with pytest.raises(ValueError, match=f"standardized_difference: .*{message}"):
        standardized_difference(**arguments)
