from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from d2kd.losses.align import align_statistics

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "06_crosskd_align_scale.npz")


def random_taps(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(*shape, generator=generator, dtype=dtype).relu() * 3 + 1
    teacher = torch.randn(*shape, generator=generator, dtype=dtype) * 0.5 - 2
    return student.requires_grad_(), teacher


@pytest.mark.parametrize(
    "dtype, suffix, rtol, atol",
    [(torch.float32, "f32", 1e-5, 1e-6), (torch.float64, "f64", 1e-9, 1e-12)],
    ids=["f32", "f64"],
)
def test_golden(dtype, suffix, rtol, atol):
    student, teacher, cotangent = (torch.from_numpy(GOLDEN[n]).to(dtype) for n in ("stu", "tea", "cotangent"))
    student.requires_grad_()
    aligned = align_statistics(student, teacher)
    (grad,) = torch.autograd.grad(aligned, student, cotangent)
    assert aligned.dtype == grad.dtype == dtype
    expected, expected_grad = (torch.from_numpy(GOLDEN[f"{n}_{suffix}"]) for n in ("out", "grad_stu"))
    torch.testing.assert_close(aligned.detach(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=atol)


def test_ramp_from_reference_code():
    student = torch.arange(8.0).reshape(2, 1, 2, 2)
    teacher = torch.tensor([1.0, -1, 2, 0, 3, 5, -2, 4]).reshape(2, 1, 2, 2)
    aligned = align_statistics(student, teacher)
    torch.testing.assert_close(aligned.flatten(), torch.arange(-2.0, 6.0), rtol=0, atol=5e-6)


def restated(student: Tensor, teacher: Tensor, rectify: bool = False) -> Tensor:
    """The docstring's formula, left to autograd."""
    (s_std, s_mean), (t_std, t_mean) = (torch.std_mean(x, dim=(0, 2, 3), keepdim=True) for x in (student, teacher))
    aligned = (student - s_mean) / (s_std + 1e-6) * t_std + t_mean
    return aligned.relu() if rectify else aligned


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("scale", [1, 1e-6], ids=["unit", "as_small_as_the_constant"])
def test_equals_the_formula_left_to_autograd(scale, rectify):
    student, teacher = random_taps(3, 4, 5, 6, dtype=torch.float64)
    student, teacher = (scale * student).detach().requires_grad_(), teacher + 2
    cotangent = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    aligned, expected = align_statistics(student, teacher, rectify=rectify), restated(student, teacher, rectify)
    torch.testing.assert_close(aligned, expected, rtol=1e-12, atol=1e-12)
    assert (aligned == 0).any() == rectify
    (grad,) = torch.autograd.grad(aligned, student, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, student, cotangent)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12 / scale)


@pytest.mark.parametrize("rectify", [False, True])
def test_gradcheck(rectify):
    student, teacher = random_taps(2, 3, 2, 3, dtype=torch.float64)
    teacher += 2  # of both signs, so that a ReLU is of use
    assert torch.autograd.gradcheck(lambda tap: align_statistics(tap, teacher, rectify=rectify), (student,))


@pytest.mark.parametrize("rectify", [False, True])
def test_of_the_maps_only_the_tap_and_the_rectified_result_are_kept(rectify):
    student, teacher = random_taps(2, 8, 6, 7)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        aligned = align_statistics(student, teacher, rectify=rectify)
    large = {x.data_ptr() for x in kept if x.numel() > 2 * 8}
    assert large == {student.data_ptr(), *([aligned.data_ptr()] if rectify else [])}


def test_inputs_are_left_alone():
    student, teacher = random_taps(2, 3, 4, 5)
    cotangent = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    copies = [x.detach().clone() for x in (student, teacher, cotangent)]
    align_statistics(student, teacher, rectify=True).backward(cotangent)
    assert all(torch.equal(x.detach(), copy) for x, copy in zip((student, teacher, cotangent), copies, strict=True))


def test_result_has_the_teachers_statistics():
    student, teacher = random_taps(2, 8, 16, 16)
    aligned = align_statistics(student, teacher)
    for actual, expected in zip(
        torch.std_mean(aligned, dim=(0, 2, 3)), torch.std_mean(teacher, dim=(0, 2, 3)), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_statistics_are_of_the_whole_batch():
    student, teacher = random_taps(2, 3, 4, 4)
    together = align_statistics(student, teacher)
    pairs = zip(student.split(1), teacher.split(1), strict=True)
    alone = torch.cat([align_statistics(s, t) for s, t in pairs])
    assert (together - alone).abs().max() > 0.1


def test_scale_and_shift_of_the_student_do_not_matter():
    student, teacher = random_taps(2, 3, 4, 4, dtype=torch.float64)
    scale = torch.tensor([0.2, 3.0, 10.0]).view(1, 3, 1, 1)
    shift = torch.tensor([-4.0, 0.0, 7.0]).view(1, 3, 1, 1)
    aligned = align_statistics(student, teacher)
    torch.testing.assert_close(align_statistics(student * scale + shift, teacher), aligned, rtol=0, atol=2e-5)
    # So the gradient has no part along either: both statistics carry it.
    cotangent = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(aligned, student, cotangent)
    centered = student.detach() - student.detach().mean(dim=(0, 2, 3), keepdim=True)
    assert grad.sum(dim=(0, 2, 3)).abs().max() < 1e-10
    assert (grad * centered).sum(dim=(0, 2, 3)).abs().max() < 1e-5 * grad.abs().max()


def test_own_tap_comes_back():
    _, teacher = random_taps(2, 5, 8, 8)
    teacher[:, 2] = 0.75
    torch.testing.assert_close(align_statistics(teacher.clone(), teacher), teacher, rtol=0, atol=1e-5)


def test_a_single_value_per_channel_gives_the_teachers_mean():
    student, teacher = random_taps(1, 6, 1, 1)
    aligned = align_statistics(student, teacher)
    assert torch.equal(aligned.detach(), teacher)
    (grad,) = torch.autograd.grad(aligned.sum(), student)
    assert torch.count_nonzero(grad) == 0

    several, _ = random_taps(1, 6, 2, 2)
    aligned = align_statistics(several, teacher)
    assert torch.equal(aligned.detach(), teacher.expand_as(several))


@pytest.mark.parametrize("value", [0.0, 0.1, 7.3])
def test_dead_student_channel_has_finite_gradient(value):
    student, teacher = random_taps(2, 3, 4, 5)
    student = student.detach()
    student[:, 1] = value
    student.requires_grad_()
    aligned = align_statistics(student, teacher)
    cotangent = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(aligned, student, cotangent)
    assert torch.isfinite(aligned).all() and torch.isfinite(grad).all()
    if value == 0:
        mean = teacher[:, 1].mean()
        torch.testing.assert_close(aligned[:, 1].detach(), mean.expand(2, 4, 5))


def test_dead_teacher_channel_gives_its_value():
    student, teacher = random_taps(2, 3, 4, 5)
    teacher[:, 1] = 0.5
    aligned = align_statistics(student, teacher)
    torch.testing.assert_close(aligned[:, 1].detach(), torch.full((2, 4, 5), 0.5))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 3, 1, 1)])
def test_non_finite_tap_is_not_hidden(shape):
    student, teacher = random_taps(*shape)
    for value in (float("nan"), float("inf")):
        broken = student.detach().clone()
        broken[0, 1, 0, 0] = value
        aligned = align_statistics(broken, teacher)
        assert torch.isfinite(aligned).all(dim=0).all(dim=-1).all(dim=-1).tolist() == [True, False, True]


def test_taps_may_differ_in_size_but_not_in_channels():
    student, _ = random_taps(2, 3, 4, 5)
    _, teacher = random_taps(1, 3, 7, 8)
    aligned = align_statistics(student, teacher)
    assert aligned.shape == student.shape
    torch.testing.assert_close(aligned.mean(dim=(0, 2, 3)), teacher.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_computed_in_float32(shape, dtype):
    student, teacher = random_taps(*shape)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    aligned = align_statistics(student, teacher)
    assert aligned.dtype == torch.float32
    assert torch.equal(aligned, align_statistics(student.float(), teacher.float()))
    assert torch.autograd.grad(aligned.sum(), student)[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    student, teacher = (x.detach().to(dtype) for x in random_taps(2, 3, 4, 5))
    student.requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            aligned = align_statistics(student, teacher)
            results.append((aligned, torch.autograd.grad(aligned.square().sum(), student)[0]))
    (plain, plain_grad), (cast, cast_grad) = results
    assert cast.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(plain, cast) and torch.equal(plain_grad, cast_grad)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 1, 1)])
def test_teacher_gets_no_gradient(shape):
    student, teacher = random_taps(*shape)
    teacher.requires_grad_()
    align_statistics(student, teacher).square().sum().backward()
    assert student.grad is not None and teacher.grad is None


def test_the_constant_is_added_to_the_students_deviation():
    """Of the size of the deviation it shrinks the result, far below it does not."""
    student, teacher = random_taps(2, 3, 4, 5, dtype=torch.float64)
    teacher_mean = teacher.mean(dim=(0, 2, 3), keepdim=True)
    small, large = 1e-6 * student, 1e6 * student
    small_std, large_std = (x.std(dim=(0, 2, 3), keepdim=True) for x in (small, large))
    shrunk = (align_statistics(small, teacher) - teacher_mean) * (small_std + 1e-6) / small_std
    whole = align_statistics(large, teacher) - teacher_mean
    torch.testing.assert_close(shrunk, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "student, teacher, message",
    [
        (
            torch.zeros(2, 3, 4, 4),
            torch.zeros(2, 5, 4, 4),
            r"4, 4\) and \(2, 5, 4, 4\).*tap_projector_channels",
        ),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), r"student_tap must be \(N, C, H, W\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4), r"teacher_tap must be \(N, C, H, W\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), torch.zeros(2, 3, 4, 4), "student_tap.*int64"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.int64), "teacher_tap.*int64"),
    ],
)
def test_bad_input_is_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        align_statistics(student, teacher)
