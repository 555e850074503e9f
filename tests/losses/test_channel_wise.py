"""CWD: each channel's softmax over the cells of an image."""

import math

import pytest
import torch

from d2kd.losses import ChannelWiseKD, channel_wise_kd
from d2kd.losses.temperature_kl import temperature_kl
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec

SHAPE = (2, 3, 4, 5)


def maps(*shape, **kwargs):
    shape = shape or SHAPE
    return random_maps(*shape, **kwargs).requires_grad_(), random_maps(*shape, seed=1, **kwargs)


def kernel(student, teacher, temperature=1.5, **kwargs):
    return channel_wise_kd(student, teacher, temperature=temperature, **kwargs)


def softmaxes(student, teacher, temperature):
    """p and q, (N, C, H, W), by their definition."""
    exponentials = ((x / temperature).exp() for x in (teacher, student))
    return [x / x.sum((2, 3), keepdim=True) for x in exponentials]


def paper(student, teacher, temperature):
    """The paper's loss of one image, (C, H, W), in a loop over channels and cells."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        cells = [(i, j) for i in range(s.shape[0]) for j in range(s.shape[1])]
        q_sum = sum((s[cell] / temperature).exp() for cell in cells)
        p_sum = sum((t[cell] / temperature).exp() for cell in cells)
        for cell in cells:
            p, q = (t[cell] / temperature).exp() / p_sum, (s[cell] / temperature).exp() / q_sum
            total = total + p * (p / q).log()
    return temperature**2 / len(student) * total


def test_by_hand():
    """One channel of two cells: a teacher of (3/4, 1/4) and a student of (1/2, 1/2)."""
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([math.log(3), 0]).view(1, 1, 1, 2)
    cells = kernel(student, teacher, temperature=1)
    expected = [0.75 * math.log(1.5) - 0.75 + 0.5, 0.25 * math.log(0.5) - 0.25 + 0.5]
    assert cells.shape == (1, 1, 2) and cells.flatten().tolist() == pytest.approx(expected)
    # At T = 2 the same distributions come from features twice as large; the loss is four times.
    assert kernel(student, 2 * teacher, temperature=2).flatten().tolist() == pytest.approx([4 * x for x in expected])


@pytest.mark.parametrize("temperature", [0.5, 1, 4])
def test_the_sum_is_the_papers_formula(temperature):
    student, teacher = maps()
    loss = kernel(student, teacher, temperature, reduction="sum")
    expected = sum(paper(s, t, temperature) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, student, retain_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0], rtol=1e-9, atol=1e-14)
    flat = temperature_kl(student.flatten(2), teacher.flatten(2), temperature=temperature, bin_reduction="sum", dim=2)
    torch.testing.assert_close(loss, flat.sum() / SHAPE[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 4])
def test_a_weight_multiplies_what_a_cell_contributes(temperature):
    student, teacher = maps()
    weight = random_maps(2, 4, 5, seed=2).abs()
    p, q = softmaxes(student, teacher, temperature)
    cells = temperature**2 * (p * (p / q).log() - p + q).mean(1)
    torch.testing.assert_close(kernel(student, teacher, temperature), cells, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(kernel(student, teacher, temperature, weight=weight), weight * cells)
    loss, expected = kernel(student, teacher, temperature, weight=weight, reduction="sum"), (weight * cells).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    grad, wanted = (torch.autograd.grad(x, student, retain_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-14)
    # The softmax is over all cells, so that those of no weight have a gradient too.
    one = torch.zeros(2, 4, 5, dtype=torch.float64)
    one[:, 0, 0] = 1
    (grad,) = torch.autograd.grad(kernel(student, teacher, temperature, weight=one, reduction="sum"), student)
    assert grad.all()


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted, reduction):
    student, teacher = maps(2, 3, 2, 3)
    weight = random_maps(2, 2, 3, seed=2) if weighted else None
    assert torch.autograd.gradcheck(lambda x: kernel(x, teacher, weight=weight, reduction=reduction), (student,))


def test_no_cell_is_negative_and_equal_maps_give_no_loss_and_no_gradient():
    student, teacher = maps(2, 8, 6, 7)
    p, q = softmaxes(student, teacher, 1.5)
    assert (p * (p / q).log()).min() < -1e-3  # a cell's share of the divergence alone is negative somewhere
    assert kernel(student, teacher).min() > 0
    weight = random_maps(2, 6, 7, seed=2).abs()
    loss = kernel(student, student.detach().clone(), weight=weight, reduction="sum")
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0 and not grad.any()


@pytest.mark.parametrize("seed", range(3))
def test_no_step_leads_below_the_teacher_in_a_region(seed):
    """The least weighted loss is at the teacher's distributions, whatever the region."""
    teacher, weight = random_maps(*SHAPE, seed=seed), sparse_region(2, 4, 5).double()
    student = teacher.clone().requires_grad_()
    for _ in range(20):
        moved = (student + 0.3 * random_maps(*SHAPE, seed=seed + 9)).detach().requires_grad_()
        loss = kernel(moved, teacher, weight=weight, reduction="sum")
        (grad,) = torch.autograd.grad(loss, moved)
        assert loss.item() > 0 and kernel(moved - 0.1 * grad, teacher, weight=weight, reduction="sum") < loss
        student = moved


def test_a_constant_added_to_a_channel_changes_nothing_and_a_scale_does():
    student, teacher = maps()
    offsets = 5 * random_maps(2, 3, 1, 1, seed=2)
    loss = kernel(student, teacher)
    torch.testing.assert_close(kernel(student + offsets, teacher - offsets), loss)
    assert (kernel(2 * student, teacher) - loss).abs().max() > 1e-3
    assert (kernel(student + offsets[:, :, :, :1] * torch.arange(5), teacher) - loss).abs().max() > 1e-3


def test_channels_and_images_do_not_mix():
    student, teacher = maps()
    each = [[kernel(student[n, c][None, None], teacher[n, c][None, None]) for c in range(3)] for n in range(2)]
    torch.testing.assert_close(kernel(student, teacher), torch.stack([torch.stack(x).mean(0)[0] for x in each]))


def test_at_a_high_temperature_it_is_half_the_variance_of_the_difference():
    student, teacher = maps()
    expected = (student - teacher).flatten(2).var(2, correction=0).mean(1) / 2
    at = [kernel(student, teacher, t).sum((1, 2)) for t in (1e3, 2e3)]
    torch.testing.assert_close(at[0], expected, rtol=1e-2, atol=0)
    torch.testing.assert_close(at[1], at[0], rtol=1e-2, atol=0)
    assert (kernel(student, teacher, 0.5).sum((1, 2)) / expected - 1).abs().max() > 0.05


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def cropped(x):
    return torch.nn.functional.pad(x, (0, 2, 0, 3), value=7.0)[..., : x.shape[2], : x.shape[3]]


@pytest.mark.parametrize("ours", [channels_last, cropped, lambda x: x.mT.contiguous().mT])
@pytest.mark.parametrize("theirs", [channels_last, cropped])
def test_the_memory_layout_does_not_matter(ours, theirs):
    student, teacher = maps()
    moved = ours(student.detach()).requires_grad_()
    weight = random_maps(2, 4, 5, seed=2)
    loss, expected = kernel(moved, theirs(teacher), weight=weight), kernel(student, teacher, weight=weight)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(x.square().sum(), y)[0] for x, y in ((loss, moved), (expected, student))]
    torch.testing.assert_close(*grads)


def test_one_cell_gives_a_connected_zero_and_one_channel_its_own_divergence():
    student, teacher = maps(2, 3, 1, 1)
    loss = kernel(student, teacher, reduction="sum")
    (grad,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0 and not grad.any()
    student, teacher = maps(1, 1, 2, 3)
    assert kernel(student, teacher, reduction="sum").item() == pytest.approx(paper(student[0], teacher[0], 1.5).item())


def test_features_far_apart_stay_finite_and_accurate():
    """In float32 the probabilities underflow: ln q is -2000 where p is one."""
    student = torch.tensor([0.0, 2000.0]).view(1, 1, 1, 2).requires_grad_()
    teacher = torch.tensor([2000.0, 0.0]).view(1, 1, 1, 2)
    cells = kernel(student, teacher, temperature=1)
    assert cells.flatten().tolist() == [1999, 1]
    (grad,) = torch.autograd.grad(cells.sum(), student)
    assert grad.flatten().tolist() == [-1, 1]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_not_hidden(value, side):
    both = [x.detach().clone() for x in maps()]
    both[side][1, 2, 3, 4] = value
    cells = kernel(*both)
    assert cells[0].isfinite().all() and cells[1].isnan().all()


def test_the_teacher_gets_no_gradient():
    student, teacher = maps()
    kernel(student, teacher.requires_grad_(), reduction="sum").backward()
    assert teacher.grad is None and student.grad.any()
    assert not kernel(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_computed_in_float32_under_autocast_too(dtype):
    """Features of 300: their squares overflow float16."""
    student, teacher = ((300 * x.detach()).to(dtype) for x in maps())
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kernel(student, teacher, temperature=20.0, reduction="sum")
    wide = kernel(student.double(), teacher.double(), temperature=20.0, reduction="sum")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wide.item(), rel=1e-5)
    loss.backward()
    assert student.grad.dtype == dtype and student.grad.isfinite().all() and student.grad.any()
    assert kernel(student, teacher.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_of_the_maps_a_sum_keeps_its_gradient_alone(dtype):
    """In the student's dtype, or in one with the range for a gradient that is not scaled yet."""
    student, teacher = (x.detach().to(dtype) for x in maps(2, 64, 8, 8))
    before = [x.clone() for x in (student, teacher)]
    kept = []
    weight = torch.full((2, 8, 8), 1e-6)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = kernel(student.requires_grad_(), teacher, weight=weight, reduction="sum")
    (kept,) = kept
    assert kept.shape == student.shape and kept.data_ptr() not in (student.data_ptr(), teacher.data_ptr())
    assert kept.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    (grad,) = torch.autograd.grad(1e6 * loss, student)
    expected = kernel(student, teacher, weight=1e6 * weight).sum()
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0], rtol=2e-2, atol=1e-5)
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2)])
def test_no_image_and_no_cell_give_a_connected_zero(shape):
    student, teacher = maps(*shape)
    loss = kernel(student, teacher, reduction="sum")
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == student.shape


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher": torch.zeros(2, 4, 5, 6)}, r"\(2, 3, 5, 6\) and \(2, 4, 5, 6\)"),
        ({"teacher": torch.zeros(2, 3, 6, 5)}, r"\(2, 3, 5, 6\) and \(2, 3, 6, 5\)"),
        ({"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3)}, r"\(N, C, H, W\)"),
        ({"student": torch.zeros(2, 0, 5, 6), "teacher": torch.zeros(2, 0, 5, 6)}, r"axis 1 .*\(2, 0, 5, 6\)"),
        ({"student": torch.zeros(2, 3, 5, 6, dtype=torch.int64)}, "student must be floating.*int64"),
        ({"weight": torch.zeros(2, 1, 5, 6)}, r"weight.*expected \(2, 5, 6\), found \(2, 1, 5, 6\)"),
        ({"weight": torch.zeros(2, 5, 6, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction must be .*'mean'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = dict(student=torch.zeros(2, 3, 5, 6), teacher=torch.zeros(2, 3, 5, 6), temperature=1.0)
    with pytest.raises(ValueError, match=f"channel_wise_kd: .*{message}"):
        channel_wise_kd(**{**arguments, **kwargs})


# ---- the module -------------------------------------------------------------------------------------------------


def test_by_default_it_is_the_papers_sum_averaged_over_images():
    """The detector divides by half of the images; two levels, whose terms add up."""
    module = ChannelWiseKD(weight=0.5)
    (spec,) = module.regions
    assert (spec.name, dict(spec.options), spec.normalizer) == ("everywhere", {}, "images")
    assert (module.task, module.temperature, module.projector) == ("feature", 1.0, None)
    pairs = [maps(3, 2, 4, 5), maps(3, 2, 2, 1)]
    region = module.prepare_region([torch.ones(3, 2, 4, 5), torch.ones(3, 2, 2, 1)])
    sums = module(output(features=[s for s, _ in pairs]), output(features=[t for _, t in pairs]), region)
    expected = [sum(paper(s[n], t[n], 1.0) for n in range(3)) / 3 for s, t in pairs]
    torch.testing.assert_close(module.weight * sums / (3 / 2), torch.stack(expected))


@pytest.mark.parametrize("anchors", [1, 3])
def test_the_module_weighs_a_cell_with_its_largest_anchor(anchors):
    student, teacher = maps(2, 6, 5, 7)
    region = sparse_region(2, anchors, 5, 7)
    module = ChannelWiseKD(region="positives", temperature=0.7)
    (cells,) = module.prepare_region([region])
    loss = module.level_loss(output(features=[student]), output(features=[teacher]), 0, cells)
    torch.testing.assert_close(loss, (region.amax(1) * kernel(student, teacher, 0.7)).sum())


def test_a_region_of_anchors_is_refused():
    both = output(features=[random_maps(1, 3, 4, 4)])
    with pytest.raises(ValueError, match=r"ChannelWiseKD.level_loss takes one weight a cell.*found \(1, 2, 4, 4\)"):
        ChannelWiseKD().level_loss(both, both, 0, torch.ones(1, 2, 4, 4))


def test_a_projector_makes_the_student_as_wide_as_the_teacher():
    module = ChannelWiseKD(projector_channels=[3, 5])
    student, teacher = random_maps(2, 3, 4, 4, dtype=torch.float32), random_maps(2, 5, 4, 4, dtype=torch.float32)
    source, target = output(features=[student.requires_grad_()]), output(features=[teacher])
    loss = module.level_loss(source, target, 0, torch.ones(2, 1, 4, 4))
    torch.testing.assert_close(loss, kernel(module.projector(student), teacher, 1.0, reduction="sum"))
    for region in (torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)):
        tensors = [student, *module.parameters()]
        sums = module(source, target, [region])
        grads = torch.autograd.grad(sums.sum(), tensors)  # raises if one is not connected
        assert sums.any() == grads[0].any() == grads[1].any() == region.any()
    with pytest.raises(ValueError, match=r"ChannelWiseKD needs features of one width, but .* 64 channels .* 256"):
        ChannelWiseKD().check_pair(spec("GFL", feature_channels=64), spec("ATSS"))


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", None])
def test_a_temperature_that_means_nothing_is_named(value):
    with pytest.raises(ValueError, match="ChannelWiseKD.temperature is .*, expected a finite number > 0"):
        ChannelWiseKD(temperature=value)


def test_a_crossed_source_has_no_features():
    with pytest.raises(ValueError, match="ChannelWiseKD.source is 'crossed', which has no features"):
        ChannelWiseKD(source="crossed")


def test_a_printed_term_shows_its_temperature():
    assert "region=everywhere, normalizer=images" in repr(ChannelWiseKD())
    assert repr(ChannelWiseKD(temperature=4)).endswith("projector_channels=None, temperature=4)")
