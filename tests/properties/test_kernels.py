"""The functions of d2kd.losses on tensors of any shape, axis, memory layout, dtype and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import d2kd.losses
from d2kd.losses import (
    align_statistics,
    binary_classification_kd,
    centerness_kd,
    channel_wise_kd,
    dynamic_localization_kd,
    feature_imitation,
    gap_weighted_bce,
    iou_localization_kd,
    iou_loss,
    laplace_kl,
    localization_distillation,
    pearson_kd,
    softmax_classification_kd,
    standardized_difference,
    temperature_kl,
)
from tests.properties.scenes import DTYPES, QUICK, SCALES, SEEDS

SIDE = st.integers(1, 5)


@dataclass(frozen=True)
class Kernel:
    """
    A function of two tensors of one shape.

    Attributes:
        axis: what it sums over: "dim", an axis that is named, "channels" or "boxes", one that is not, or "none".
        whole: whether it takes statistics over all of a tensor, so that there is nothing to split.
    """

    function: Callable[..., Tensor]
    axis: str
    whole: bool = False
    probabilities: bool = False


KERNELS = {
    "binary_classification_kd": Kernel(partial(binary_classification_kd, beta=1.5), "dim"),
    "gap_weighted_bce": Kernel(partial(gap_weighted_bce, beta=2.0), "dim", probabilities=True),
    "pearson_kd": Kernel(pearson_kd, "dim"),
    "temperature_kl": Kernel(partial(temperature_kl, temperature=2.0), "dim"),
    "localization_distillation": Kernel(partial(localization_distillation, temperature=3.0), "dim"),
    "softmax_classification_kd": Kernel(softmax_classification_kd, "dim"),
    "dynamic_localization_kd": Kernel(partial(dynamic_localization_kd, temperature=3.0), "dim"),
    "iou_localization_kd": Kernel(partial(iou_localization_kd, iou_type="iou"), "boxes"),
    "centerness_kd": Kernel(centerness_kd, "none"),
    "laplace_kl": Kernel(partial(laplace_kl, temperature=0.5), "dim"),
    "feature_imitation": Kernel(feature_imitation, "channels"),
    "channel_wise_kd": Kernel(partial(channel_wise_kd, temperature=2.0), "channels"),
    "standardized_difference": Kernel(standardized_difference, "channels", whole=True),
}
#: These return no loss a location: tests of their own below.
OTHERS = {"align_statistics", "iou_loss"}
EVERY_KERNEL = pytest.mark.parametrize("name", KERNELS)


def draw(seed: int, shape: Sequence[int], *, scale: float = 1.0, boxes: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    values = values * scale if scale < 10 else (4 * values).clamp(-1, 1) * scale
    if boxes:  # upright, in a window that all meet in
        low, high = values.split(2, dim=-1)
        values = torch.cat([low, high + 2 * scale], dim=-1)
    return values


def pair(kernel: Kernel, seed: int, sizes: Sequence[int], **options) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and weight of one kernel; ``sizes`` are four."""
    shape = (*sizes[:3], 4) if kernel.axis == "boxes" else tuple(sizes)
    student, teacher = (draw(seed + i, shape, boxes=kernel.axis == "boxes", **options) for i in (0, 1))
    if kernel.probabilities:
        teacher = teacher.sigmoid()
    summed = {"dim": 3, "boxes": 3, "channels": 1, "none": None}[kernel.axis]
    locations = [size for axis, size in enumerate(shape) if axis != summed]
    weight = torch.rand(locations, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return student, teacher, weight


def test_every_function_is_looked_at():
    functions = {name for name in d2kd.losses.__all__ if name.islower()}
    assert functions == {*KERNELS, *OTHERS}


@EVERY_KERNEL
def test_values_and_gradients_are_finite(name):
    """Of no location too."""
    kernel = KERNELS[name]

    @QUICK
    @given(st.tuples(st.integers(0, 5), SIDE, SIDE, SIDE), SEEDS, st.sampled_from(DTYPES), SCALES)
    def check(sizes, seed, dtype, scale):
        student, teacher, weight = pair(kernel, seed, sizes, scale=scale)
        student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
        loss = kernel.function(student, teacher)
        assert loss.shape == weight.shape and loss.isfinite().all()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (grad,) = torch.autograd.grad(kernel.function(student, teacher, weight=weight, reduction="sum"), student)
        assert grad.isfinite().all() and grad.dtype == dtype

    check()


@EVERY_KERNEL
def test_a_sum_is_the_weighted_sum_of_its_locations(name):
    """Value and gradient; and of the parts that a batch is split into."""
    kernel = KERNELS[name]

    @QUICK
    @given(st.tuples(SIDE, SIDE, SIDE, SIDE), SEEDS, SCALES)
    def check(sizes, seed, scale):
        student, teacher, weight = pair(kernel, seed, sizes, scale=scale)
        student.requires_grad_()
        total = kernel.function(student, teacher, weight=weight, reduction="sum")
        single = kernel.function(student, teacher)
        torch.testing.assert_close(total, (single * weight).sum(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(kernel.function(student, teacher, weight=weight), single * weight)
        grads = [torch.autograd.grad(x, student)[0] for x in (total, (single * weight).sum())]
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)
        if not kernel.whole:
            parts = [kernel.function(*part) for part in zip(student.split(1), teacher.split(1))]
            torch.testing.assert_close(torch.cat(parts), single, rtol=1e-9, atol=1e-9)

    check()


@EVERY_KERNEL
def test_the_memory_layout_and_the_named_axis_do_not_matter(name):
    kernel = KERNELS[name]

    @QUICK
    @given(st.tuples(SIDE, SIDE, SIDE, SIDE), SEEDS, st.integers(0, 3), st.permutations(range(4)))
    def check(sizes, seed, axis, order):
        student, teacher, weight = pair(kernel, seed, sizes)
        student.requires_grad_()
        total = kernel.function(student, teacher, weight=weight, reduction="sum")
        (expected,) = torch.autograd.grad(total, student)
        # Views whose axes lie in another order in memory.
        back = [order.index(i) for i in range(4)]
        views = [x.detach().permute(order).contiguous().permute(back) for x in (student, teacher)]
        options = {}
        if kernel.axis == "dim":
            views = [x.movedim(3, axis) for x in views]
            options = {"dim": axis}
        views[0].requires_grad_()
        found = kernel.function(*views, weight=weight, reduction="sum", **options)
        torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-9)
        (grad,) = torch.autograd.grad(found, views[0])
        grad = grad.movedim(axis, 3) if options else grad
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)

    check()


@pytest.mark.parametrize("reduction", ["none", "sum"])
@EVERY_KERNEL
def test_gradients_are_those_of_the_value(name, reduction):
    kernel = KERNELS[name]

    @settings(QUICK, max_examples=5)
    @given(st.tuples(SIDE, SIDE, SIDE, SIDE), SEEDS)
    def check(sizes, seed):
        student, teacher, weight = pair(kernel, seed, sizes)

        def value(x: Tensor) -> Tensor:
            return kernel.function(x, teacher, weight=weight, reduction=reduction)

        assert torch.autograd.gradcheck(value, student.requires_grad_(), fast_mode=True, atol=1e-5, rtol=1e-3)

    check()


@QUICK
@given(st.lists(SIDE, min_size=1, max_size=3), SEEDS, st.sampled_from(["giou", "iou", "neg_log_iou"]))
def test_the_detection_loss_is_the_kernel_with_a_gradient_into_the_targets(shape, seed, kind):
    boxes, targets = (draw(seed + i, (*shape, 4), boxes=True).requires_grad_() for i in (0, 1))
    value = partial(iou_loss, iou_type=kind)
    torch.testing.assert_close(value(boxes, targets), iou_localization_kd(boxes, targets, iou_type=kind))
    assert torch.autograd.gradcheck(value, (boxes, targets), fast_mode=True, atol=1e-5, rtol=1e-3)


@QUICK
@given(st.tuples(SIDE, SIDE, SIDE, SIDE), SEEDS, st.sampled_from(DTYPES), SCALES, st.booleans())
def test_alignment_gives_the_teachers_statistics_whatever_the_order(sizes, seed, dtype, scale, rectify):
    student, teacher = draw(seed, sizes, scale=scale).to(dtype), draw(seed + 1, sizes, scale=scale).to(dtype)
    aligned = align_statistics(student.requires_grad_(), teacher, rectify=rectify)
    (grad,) = torch.autograd.grad(aligned.sum(), student)
    assert aligned.isfinite().all() and grad.isfinite().all()
    assert aligned.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    turned = align_statistics(student.flip(0, 3), teacher.flip(2), rectify=rectify)
    torch.testing.assert_close(turned.flip(0, 3), aligned, rtol=1e-4, atol=1e-4 * scale)
    if dtype == torch.float64 and not rectify and scale == 1 and sizes[0] * sizes[2] * sizes[3] > 2:
        for statistic in (torch.mean, torch.std):
            found, expected = (statistic(x, dim=(0, 2, 3)) for x in (aligned, teacher))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(QUICK, max_examples=10)
@given(st.tuples(SIDE, SIDE, SIDE, SIDE), SEEDS, st.booleans())
def test_gradients_through_alignment(sizes, seed, rectify):
    student, teacher = draw(seed, sizes).requires_grad_(), draw(seed + 1, sizes)
    value = partial(align_statistics, teacher_tap=teacher, rectify=rectify)
    assert torch.autograd.gradcheck(value, student, fast_mode=True, atol=1e-4, rtol=1e-3)
