"""What the losses have in common whose gradient is made with their value: memory, layouts, blocks, autograd's rules."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from d2kd.losses import binary_classification_kd, gap_weighted_bce, pearson_kd
from d2kd.losses.one_pass import blocks

Loss = Callable[..., Tensor]


def bce_formula(z: Tensor, target: Tensor, beta: int, dim: int) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(z, target, reduction="none")
    return (bce * (z.sigmoid() - target).abs() ** beta).sum(dim)


def pearson_formula(z: Tensor, t: Tensor, dim: int) -> Tensor:
    student, teacher = (
        (x - x.mean(dim, keepdim=True)) / (x.var(dim, correction=0, keepdim=True) + 1e-5).sqrt() for x in (z, t)
    )
    return (student - teacher).square().mean(dim) / 2


#: Each loss with its formula, left to autograd.
LOSSES = {
    "binary": (binary_classification_kd, lambda z, t, dim: bce_formula(z, t.sigmoid(), 1, dim)),
    "probabilities": (partial(gap_weighted_bce, beta=2), partial(bce_formula, beta=2)),
    "pearson": (pearson_kd, pearson_formula),
}
EVERY_LOSS = pytest.mark.parametrize("loss, formula", LOSSES.values(), ids=LOSSES)


def random_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Student's map, the other map with values in [0, 1], which are logits too, and weights for ``dim=2``."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(*shape, generator=generator) * 2 - 2
    other, weight = (torch.rand(*s, generator=generator) for s in (shape, shape[:2] + shape[3:]))
    return student.to(dtype).requires_grad_(), other.to(dtype), weight


def kept_maps(loss: Loss, student: Tensor, *args: Tensor, **kwargs) -> tuple[Tensor, list[Tensor]]:
    """The loss, and what autograd keeps for its backward pass."""
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return loss(student, *args, **kwargs), kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["none", "sum"])
@EVERY_LOSS
def test_one_map_is_kept_and_no_input_written_on(loss, formula, reduction, dtype):
    student, other, weight = random_inputs(2, 3, 5, 4, 6, dtype=dtype)
    before = student.detach().clone(), other.clone()
    value, kept = kept_maps(loss, student, other, weight=weight, dim=2, reduction=reduction)
    assert [(x.shape, x.dtype) for x in kept] == [(student.shape, dtype)]
    assert kept[0].untyped_storage().nbytes() == student.nbytes
    assert kept[0].data_ptr() not in (student.data_ptr(), other.data_ptr())
    value.sum().backward()
    assert torch.equal(student.detach(), before[0]) and torch.equal(other, before[1])


@EVERY_LOSS
def test_a_loss_scale_reaches_float16_before_rounding(loss, formula):
    """A gradient of 1e-9 is zero in float16, 1e-9 times the scale is not."""
    student, other, _ = random_inputs(2, 3, 5, 4, 6, dtype=torch.float16)
    weight = torch.full((2, 3, 4, 6), 1e-9)
    total = loss(student, other, weight=weight, dim=2, reduction="sum")
    (grad,) = torch.autograd.grad(total * 2.0**24, student)
    exact = student.detach().double().requires_grad_()
    expected = torch.autograd.grad(formula(exact, other.double(), dim=2).sum() * 2.0**24 * 1e-9, exact)[0]
    assert grad.dtype == torch.float16
    torch.testing.assert_close(grad.double(), expected, rtol=1e-3, atol=1e-6)


@EVERY_LOSS
def test_without_a_gradient_nothing_is_kept(loss, formula):
    student, other, weight = random_inputs(2, 3, 5, 4, 6)
    expected = loss(student, other, weight=weight, dim=2, reduction="sum")
    with torch.no_grad():
        value, kept = kept_maps(loss, student, other, weight=weight, dim=2, reduction="sum")
    assert torch.equal(value, expected) and not value.requires_grad and not kept
    value, kept = kept_maps(loss, student.detach(), other.requires_grad_(), weight=weight, dim=2, reduction="sum")
    assert torch.equal(value, expected) and not value.requires_grad and not kept


@pytest.mark.parametrize("reduction", ["none", "sum"])
@EVERY_LOSS
def test_a_retained_graph_gives_the_same_gradient_again(loss, formula, reduction):
    student, other, weight = random_inputs(2, 3, 5, 4, 6)
    value = loss(student, other, weight=weight, dim=2, reduction=reduction)
    factor = torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
    first, again = (torch.autograd.grad(value, student, factor, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(torch.autograd.grad(value, student, 3 * factor)[0], 3 * first)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@EVERY_LOSS
def test_the_loss_may_be_changed_in_place(loss, formula, reduction):
    student, other, _ = random_inputs(2, 3, 5, 4, 6)
    expected = torch.autograd.grad(2 * loss(student, other, dim=2, reduction="sum"), student)[0]
    changed = loss(student, other, dim=2, reduction=reduction).mul_(2)
    torch.testing.assert_close(torch.autograd.grad(changed.sum(), student)[0], expected)


@EVERY_LOSS
def test_a_second_derivative_is_refused(loss, formula):
    student, other, _ = random_inputs(2, 3, 5, 4, 6)
    total = loss(student, other, dim=2, reduction="sum").square()
    (grad,) = torch.autograd.grad(total, student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@EVERY_LOSS
def test_under_checkpoint(loss, formula):
    student, other, weight = random_inputs(2, 3, 5, 4, 6)
    kernel = partial(loss, weight=weight, dim=2, reduction="sum")
    expected = torch.autograd.grad(kernel(student, other), student)[0]
    value = checkpoint(kernel, student, other, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(value, student)[0], expected)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.flatten(1, 2).to(memory_format=torch.channels_last).view(x.shape),
    "cropped": lambda x: F.pad(x, (0, 3, 0, 2))[..., : x.shape[-2], : x.shape[-1]],
    "some classes": lambda x: torch.cat([x, x[:, :, :4]], dim=2)[:, :, : x.shape[2]],
}


@pytest.mark.parametrize("other_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@EVERY_LOSS
def test_a_map_of_many_blocks_in_any_layout(loss, formula, layout, other_layout):
    student, other, weight = random_inputs(2, 2, 13, 121, 83)
    student = LAYOUTS[layout](student.detach()).requires_grad_()
    laid_out = LAYOUTS[other_layout](other)
    assert student.numel() > 2 * 2**17 * torch.get_num_threads()
    value = loss(student, laid_out, weight=weight, dim=2)
    total = loss(student, laid_out, weight=weight, dim=2, reduction="sum")
    exact = student.detach().double().requires_grad_()
    expected = formula(exact, other.double(), dim=2) * weight
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.double(), expected.sum(), rtol=1e-6, atol=0)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    for x in (value.sum(), total):
        (grad,) = torch.autograd.grad(x, student)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-5, atol=1e-6)


@EVERY_LOSS
def test_one_logit_that_is_not_finite_makes_the_sum_so(loss, formula):
    student, other, weight = random_inputs(2, 3, 5, 4, 6)
    for value in (float("nan"), float("inf"), float("-inf")):
        broken = student.detach().clone()
        broken[1, 2, 3, 1, 4] = value
        assert not loss(broken.requires_grad_(), other, weight=weight, dim=2, reduction="sum").isfinite()


@EVERY_LOSS
def test_no_location_gives_a_connected_zero(loss, formula):
    student, other, weight = random_inputs(2, 3, 5, 0, 6)
    total = loss(student, other, weight=weight, dim=2, reduction="sum")
    assert total == 0
    total.backward()
    assert student.grad.shape == student.shape


@pytest.mark.parametrize("size", [1, 7, 20, 30, 200, 10_000])
@pytest.mark.parametrize("whole_axis", [None, 1])
def test_blocks_cover_their_maps_once(size, whole_axis):
    size = max(size, 5 if whole_axis else 1)
    counts, per_location = torch.zeros(3, 5, 4, 7), torch.zeros(3, 1, 4, 7)
    shapes = []
    for block, part in blocks([counts, per_location], size, whole_axis=whole_axis):
        block.add_(1)
        part.add_(block.sum(1, keepdim=True))
        shapes.append(block.shape)
    assert (counts == 1).all() and (per_location == 5).all()
    assert all(shape.numel() <= size for shape in shapes)
    assert whole_axis is None or all(shape[1] == 5 for shape in shapes)


def test_blocks_are_about_equal():
    sizes = [block.numel() for (block,) in blocks([torch.zeros(10, 11)], 60)]
    assert sizes == [55, 55]
