from pathlib import Path

import numpy as np
import pytest
import torch

from d2kd.losses.standardize import standardize, standardized_difference
from tests.losses.fake_outputs import random_maps

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "01_losses_pkd.npz")
PRECISIONS = pytest.mark.parametrize(
    "dtype, suffix, rtol, atol",
    [(torch.float32, "f32", 1e-5, 1e-5), (torch.float64, "f64", 1e-9, 1e-11)],
    ids=["f32", "f64"],
)
WEIGHT = 6  # PKD's, in the golden numbers


def restated(student, teacher, correction=1, eps=1e-6):
    """The docstring's formula with unweighted cells, left to autograd; (N, C, H, W)."""

    def scores(x):
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), correction=correction, keepdim=True)
        return (x - mean) / (std + eps)

    return (scores(student) - scores(teacher.detach())).square() / 2


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
        (WEIGHT * standardized_difference(student, teacher, reduction="mean"), "pkd_mean"),
    ):
        (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
        assert loss.dtype == grad.dtype == dtype
        expected = torch.from_numpy(GOLDEN[f"{name}__out_{suffix}"]).sum()
        torch.testing.assert_close(loss.detach(), expected, rtol=rtol, atol=atol)
        expected = torch.from_numpy(GOLDEN[f"{name}__grad_{suffix}"])
        for ours, theirs in zip(grad.unbind(1), expected.unbind(1), strict=True):
            # Of the channel's scale: 1e7 in the constant one.
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol / 10 * theirs.abs().max().item())
    scores = (standardize(x) for x in (student.detach(), teacher))
    torch.testing.assert_close(WEIGHT * (next(scores) - next(scores)) ** 2 / 2, elements, rtol=rtol, atol=atol)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_equals_the_formula_left_to_autograd(correction, eps):
    student, teacher = random_maps(2, 5, 3, 4).requires_grad_(), 3 * random_maps(2, 5, 3, 4, seed=1) + 2
    channels, cells, cotangent = random_maps(2, 5, seed=2), random_maps(2, 3, 4, seed=3), random_maps(2, 3, 4, seed=4)
    kwargs = dict(channel_weight=channels, weight=cells, correction=correction, eps=eps)
    loss = standardized_difference(student, teacher, **kwargs)
    expected = (channels[:, :, None, None] * restated(student, teacher, correction, eps)).mean(1) * cells
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(loss, student, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, student, cotangent)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(standardized_difference(student, teacher, reduction="sum", **kwargs), expected.sum())
    torch.testing.assert_close(standardized_difference(student, teacher, reduction="mean", **kwargs), expected.mean())


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
    loss = standardized_difference(student, teacher, correction=correction, reduction="mean")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_standard_scores():
    features = 7 * random_maps(3, 4, 5, 6) - 20
    for correction in (0, 1):
        scores = standardize(features, correction=correction)
        assert scores.mean((0, 2, 3)).abs().max() < 1e-12
        deviations = scores.std((0, 2, 3), correction=correction)
        torch.testing.assert_close(deviations, torch.ones_like(deviations), rtol=1e-6, atol=0)


def test_scale_and_offset_of_a_channel_do_not_matter():
    student, teacher = random_maps(2, 4, 5, 6), random_maps(2, 4, 5, 6, seed=1)
    scale, offset = random_maps(1, 4, 1, 1, seed=2).exp(), random_maps(1, 4, 1, 1, seed=3)
    loss = standardized_difference(student, teacher)
    torch.testing.assert_close(standardized_difference(scale * student + offset, teacher), loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(standardized_difference(student, scale * teacher + offset), loss, rtol=1e-4, atol=1e-6)
    # but a sign does: correlation -1
    opposite = standardized_difference(-student, student, correction=0, reduction="mean")
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
    scores = standardize(student, correction=correction)
    assert scores.requires_grad and not scores.any()
    standardize(student, correction=correction).sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_channel(value, dtype):
    """Exactly zero scores: what rounding leaves of its mean, divided by eps, would be large."""
    student, teacher = (random_maps(2, 3, 40, 50, seed=seed, dtype=dtype) for seed in (0, 1))
    student[:, 1] = value
    assert not standardize(student)[:, 1].any()
    student.requires_grad_()
    loss = standardized_difference(student, teacher)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(student.grad).all()
    scores = standardize(teacher)[:, 1]
    torch.testing.assert_close(student.grad[:, 1], -scores / 1e-6 / 3, rtol=1e-3, atol=1)
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
        ({"teacher": torch.zeros(2, 4, 5, 6)}, r"\(2, 3, 5, 6\) and \(2, 4, 5, 6\).*projector"),
        ({"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3)}, r"\(N, C, H, W\)"),
        ({"student": torch.zeros(2, 0, 5, 6), "teacher": torch.zeros(2, 0, 5, 6)}, r"found \(2, 0, 5, 6\)"),
        ({"student": torch.zeros(2, 3, 5, 6, dtype=torch.int64)}, "student must be floating.*int64"),
        ({"weight": torch.zeros(2, 1, 5, 6)}, r"weight.*expected \(2, 5, 6\), found \(2, 1, 5, 6\)"),
        ({"weight": torch.zeros(2, 5, 6, requires_grad=True)}, "weight must not require grad"),
        ({"channel_weight": torch.zeros(3)}, r"channel_weight: .*expected \(2, 3\), found \(3,\)"),
        ({"channel_weight": torch.zeros(2, 3, requires_grad=True)}, "channel_weight: .*must not require grad"),
        ({"correction": 2}, "correction must be 0 or 1, found 2"),
        ({"correction": True}, "correction must be 0 or 1, found True"),
        ({"eps": 0}, "eps must be a finite number > 0, found 0"),
        ({"reduction": "max"}, "reduction.*'max'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student": torch.zeros(2, 3, 5, 6), "teacher": torch.zeros(2, 3, 5, 6), **kwargs}
    with pytest.raises(ValueError, match=f"standardized_difference: .*{message}"):
        standardized_difference(**arguments)


@pytest.mark.parametrize(
    "features, kwargs, message",
    [
        (torch.zeros(3, 5, 6), {}, r"features must be \(N, C, H, W\), found \(3, 5, 6\)"),
        (torch.zeros(1, 3, 5, 6, dtype=torch.int32), {}, "features must be floating.*int32"),
        (torch.zeros(1, 3, 5, 6), {"correction": -1}, "correction must be 0 or 1"),
        (torch.zeros(1, 3, 5, 6), {"eps": float("nan")}, "eps must be a finite number"),
    ],
)
def test_bad_input_of_standardize_is_named(features, kwargs, message):
    with pytest.raises(ValueError, match=f"standardize: {message}"):
        standardize(features, **kwargs)
