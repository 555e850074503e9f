"""zscore_kd and pearson_kd: brute force, invariances, gradients, what is kept for backward."""

import numpy as np
import pytest
import torch
from torch import Tensor

from d2kd.losses import (
    pearson_kd,
    zscore_kd,
)
from d2kd.losses.class_relations import PEARSON_AXES
from tests.losses.fake_outputs import random_maps

# so small that only what it is for shows it
EPS = 1e-14
FUNCTIONS = [
    pytest.param(zscore_kd, {}, id="zscore"),
    *[pytest.param(pearson_kd, {"axis": axis}, id=f"pearson-{axis}") for axis in PEARSON_AXES],
]


def slow_zscore(student: Tensor, teacher: Tensor) -> list[float]:
    losses = []
    for z, t in zip(student.tolist(), teacher.tolist(), strict=True):
        z, t = ((np.array(x) - np.mean(x)) / np.std(x) for x in (z, t))
        q, p = (np.exp(x) / np.exp(x).sum() for x in (z, t))
        losses.append(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True)))
    return losses


def slow_correlation(a: Tensor, b: Tensor, weights: Tensor | None = None) -> float:
    weights = np.ones(len(a)) if weights is None else weights.numpy()
    covariance = np.cov(a.numpy(), b.numpy(), aweights=weights)
    return covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]) ** 0.5


def test_zscore_location_by_location():
    student, teacher = random_maps(9, 7) * 3 + 5, random_maps(9, 7, seed=1)
    expected = torch.tensor(slow_zscore(student, teacher), dtype=torch.float64)
    torch.testing.assert_close(zscore_kd(student, teacher, eps=EPS), expected, rtol=1e-10, atol=0)
    assert (expected > 1e-3).all()


def test_pearson_over_classes_location_by_location():
    student, teacher = random_maps(9, 7) * 3 + 5, random_maps(9, 7, seed=1)
    expected = torch.tensor([1 - slow_correlation(a, b) for a, b in zip(student, teacher, strict=True)])
    torch.testing.assert_close(pearson_kd(student, teacher, eps=EPS), expected.double(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("weight", [None, torch.rand(40, generator=torch.Generator().manual_seed(3)).double()])
def test_pearson_over_locations_class_by_class(weight):
    """Divided by the total weight, the sum is the mean over classes of 1 - corr."""
    student, teacher = random_maps(40, 7) * 3 + 5, random_maps(40, 7, seed=1)
    if weight is not None:
        weight = weight * (weight > 0.3)
    loss = pearson_kd(student, teacher, axis="location", eps=EPS, weight=weight, reduction="sum")
    expected = np.mean([1 - slow_correlation(student[:, k], teacher[:, k], weight) for k in range(7)])
    total = 40 if weight is None else weight.sum().item()
    assert (loss / total).item() == pytest.approx(expected, rel=1e-9)
    locations = pearson_kd(student, teacher, axis="location", eps=EPS, weight=weight)
    assert locations.shape == (40,) and locations.sum().item() == pytest.approx(loss.item(), rel=1e-12)


def test_pearson_over_both_is_the_mean_of_the_two():
    student, teacher, weight = random_maps(2, 5, 7), random_maps(2, 5, 7, seed=1), random_maps(2, 7, seed=2).square()
    classes, locations, both = (
        pearson_kd(student, teacher, axis=axis, weight=weight, dim=1) for axis in ("class", "location", "both")
    )
    torch.testing.assert_close(both, (classes + locations) / 2)
    assert not torch.allclose(classes, locations)


@pytest.mark.parametrize("function, options", FUNCTIONS)
@pytest.mark.parametrize("side", [0, 1])
def test_scale_and_shift_of_either_side_change_nothing(function, options, side):
    logits = [random_maps(30, 7), random_maps(30, 7, seed=1)]
    expected = function(*logits, eps=EPS, **options)
    logits[side] = logits[side] * 0.3 + 4
    torch.testing.assert_close(function(*logits, eps=EPS, **options), expected, rtol=1e-9, atol=0)
    logits[side] = -logits[side]
    assert not torch.allclose(function(*logits, eps=EPS, **options), expected, rtol=0.1)


def test_what_each_axis_does_not_see():
    """A shift and a scale of each location's classes, or of each class over the locations."""
    teacher = random_maps(30, 7)
    by_location, by_class = random_maps(30, 1, seed=1), random_maps(1, 7, seed=2)
    for axis, unseen, seen in (("class", by_location, by_class), ("location", by_class, by_location)):
        loss = pearson_kd(teacher * unseen.exp() + unseen, teacher, axis=axis, eps=EPS)
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12)
        assert pearson_kd(teacher * seen.exp() + seen, teacher, axis=axis, eps=EPS).mean() > 0.05


@pytest.mark.parametrize("function, options", FUNCTIONS)
def test_gradcheck(function, options):
    """Of the student alone; also of a location whose classes are all but equal, held by eps."""
    student, teacher = random_maps(4, 5), random_maps(4, 5, seed=1).requires_grad_()
    student[2] = 1 + 1e-3 * student[2]
    weight = random_maps(4, seed=2).square()

    def kernel(z: Tensor) -> Tensor:
        return function(z, teacher, weight=weight, eps=1e-3, **options)

    student.requires_grad_()
    assert torch.autograd.gradcheck(kernel, (student,))
    assert torch.autograd.grad(kernel(student).sum(), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("function, options", FUNCTIONS)
@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_logits_that_are_all_equal(function, options, constant):
    student, teacher = random_maps(6, 5), random_maps(6, 5, seed=1)
    if constant != "teacher":
        student = torch.full_like(student, -4.59)
    if constant != "student":
        teacher = torch.full_like(teacher, -2.5)
    student.requires_grad_()
    loss = function(student, teacher, **options)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all() and grad.isfinite().all()
    if constant == "both":
        torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12)
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)
    else:
        assert (loss > 1e-3).all()
        assert 0 < grad.abs().max() < 1e-5**-0.5  # each standardised logit pulls with less than 1
        if function is pearson_kd:
            torch.testing.assert_close(loss.mean().item(), 0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize("function, options", FUNCTIONS)
def test_weight_and_reductions(function, options):
    student, teacher, weight = random_maps(2, 5, 7), random_maps(2, 5, 7, seed=1), random_maps(2, 7, seed=2).square()
    locations = function(student, teacher, weight=weight, dim=1, **options)
    for reduction in ("sum", "mean"):
        reduced = function(student, teacher, weight=weight, dim=1, reduction=reduction, **options)
        torch.testing.assert_close(reduced, getattr(locations, reduction)())
    if options.get("axis", "class") == "class":
        torch.testing.assert_close(locations, weight * function(student, teacher, dim=1, **options))


@pytest.mark.parametrize("function, options", FUNCTIONS)
def test_weights_that_are_all_zero(function, options):
    student, teacher = random_maps(6, 5).requires_grad_(), random_maps(6, 5, seed=1)
    loss = function(student, teacher, weight=torch.zeros(6), reduction="sum", **options)
    (grad,) = torch.autograd.grad(loss, student)
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize("function, options", FUNCTIONS)
def test_any_view_of_a_map(function, options):
    """A head's map seen by anchors, in either memory layout, against rows of classes."""
    student, teacher = (
        random_maps(2, 12, 5, 6, seed=seed).to(memory_format=layout)
        for seed, layout in ((0, torch.channels_last), (1, torch.contiguous_format))
    )
    student.requires_grad_()
    weight = random_maps(2, 3, 5, 6, seed=2).square()
    views = (x.view(2, 3, 4, 5, 6) for x in (student, teacher))
    loss = function(*views, weight=weight, dim=2, **options)
    rows = (x.view(2, 3, 4, 5, 6).movedim(2, -1).reshape(-1, 4) for x in (student, teacher))
    expected = function(*rows, weight=weight.reshape(-1), **options)
    torch.testing.assert_close(loss.flatten(), expected)
    grads = (torch.autograd.grad(x.sum(), student)[0] for x in (loss, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("function, options", FUNCTIONS)
def test_two_class_maps_an_axis_are_kept_for_the_backward_pass(function, options):
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    student, teacher = random_maps(200, 50).requires_grad_(), random_maps(200, 50, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = function(student, teacher, **options)
    maps = 4 if options.get("axis") == "both" else 2
    assert sum(kept.values()) < (maps + 0.2) * student.nbytes
    loss.sum().backward()


@pytest.mark.parametrize("function, options", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(function, options, dtype):
    student, teacher = (random_maps(20, 6, seed=seed).to(dtype) for seed in (0, 1))
    expected = function(student.float(), teacher.float(), **options)
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = function(student, teacher, **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert grad.dtype == dtype and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("function, options", FUNCTIONS)
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_logits": torch.zeros(2, 9)}, r"\(2, 7\) and \(2, 9\)"),
        ({"student_logits": torch.zeros(2, 7, dtype=torch.int64)}, "must be floating.*int64"),
        ({"student_logits": torch.zeros(2, 0), "teacher_logits": torch.zeros(2, 0)}, r"at least, found .*\(2, 0\)"),
        ({"weight": torch.zeros(2, 1)}, r"weight.*without the class axis, expected \(2,\), found \(2, 1\)"),
        ({"weight": torch.zeros(2, requires_grad=True)}, "weight must not require grad"),
        ({"eps": 0}, "eps must be a finite number > 0, found 0"),
        ({"reduction": "max"}, "reduction.*'max'"),
        ({"dim": 2}, "dim must be an axis.*found 2"),
    ],
)
def test_bad_input_is_named(function, options, kwargs, message):
    arguments = {"student_logits": torch.zeros(2, 7), "teacher_logits": torch.zeros(2, 7), **options, **kwargs}
    with pytest.raises(ValueError, match=f"{function.__name__}: .*{message}"):
        function(**arguments)


def test_an_unknown_axis_is_named():
    with pytest.raises(ValueError, match="pearson_kd: axis must be one of class, location, both, found 'image'"):
        pearson_kd(torch.zeros(2, 7), torch.zeros(2, 7), axis="image")
