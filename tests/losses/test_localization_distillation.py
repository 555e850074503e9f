import pytest
import torch
from torch import Tensor

from d2kd.losses import LocalizationDistillation, localization_distillation, temperature_kl
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec


def restated(student: Tensor, teacher: Tensor, region: Tensor, temperature: float) -> Tensor:
    """LD's sum over locations of the mean over edges of the mean over bins, left to autograd."""
    p, q = ((x / temperature).softmax(3) for x in (teacher, student))
    kl = temperature**2 * (p * (p.log() - q.log())).mean(3)
    return (region[:, :, None] * kl).sum() / 4


def test_defaults_are_those_of_the_papers():
    student, teacher = random_maps(5, 4, 17), random_maps(5, 4, 17, seed=1)
    expected = temperature_kl(student, teacher, temperature=10.0, bin_reduction="mean")
    assert torch.equal(localization_distillation(student, teacher), expected)


def test_weight_and_reductions():
    student, teacher = random_maps(5, 4, 17), random_maps(5, 4, 17, seed=1)
    weight = random_maps(5, 4, seed=2).abs()
    edges = temperature_kl(student, teacher, temperature=3.0, bin_reduction="sum")

    def kernel(**kwargs) -> Tensor:
        return localization_distillation(student, teacher, temperature=3.0, bin_reduction="sum", **kwargs)

    torch.testing.assert_close(kernel(), edges)
    torch.testing.assert_close(kernel(weight=weight), weight * edges)
    torch.testing.assert_close(kernel(weight=weight, reduction="sum"), (weight * edges).sum())
    empty = torch.zeros(0, 4, 17, requires_grad=True)
    localization_distillation(empty, empty.detach(), reduction="sum").backward()
    assert empty.grad.shape == empty.shape


def test_any_axis_of_any_view():
    student, teacher = random_maps(2, 3, 4, 6, 5, 7), random_maps(2, 3, 4, 6, 5, 7, seed=1)
    weight = random_maps(2, 3, 4, 5, 7, seed=2)
    last = localization_distillation(student.movedim(3, -1), teacher.movedim(3, -1), weight=weight)
    assert last.shape == weight.shape
    torch.testing.assert_close(localization_distillation(student, teacher, weight=weight, dim=3), last)
    torch.testing.assert_close(localization_distillation(student, teacher, weight=weight, dim=-3), last)


def test_gradcheck():
    student, teacher = random_maps(3, 4, 5).requires_grad_(), random_maps(3, 4, 5, seed=1)
    weight = random_maps(3, 4, seed=2)

    def kernel(bins: Tensor) -> Tensor:
        return localization_distillation(bins, teacher, temperature=2.0, weight=weight)

    assert torch.autograd.gradcheck(kernel, (student,))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher_bins": torch.zeros(2, 4, 9)}, r"\(2, 4, 17\) and \(2, 4, 9\)"),
        ({"student_bins": torch.zeros(2, 4, 17, dtype=torch.int64)}, "must be floating.*int64"),
        ({"weight": torch.zeros(2, 4, 1)}, r"weight.*expected \(2, 4\), found \(2, 4, 1\)"),
        ({"weight": torch.zeros(2, 4), "dim": 1}, r"expected \(2, 17\), found \(2, 4\)"),
        ({"weight": torch.zeros(2, 4, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, 'reduction must be "none" or "sum", found \'mean\''),
        ({"dim": 3}, "dim must be an axis.*found 3"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = {"student_bins": torch.zeros(2, 4, 17), "teacher_bins": torch.zeros(2, 4, 17), **kwargs}
    with pytest.raises(ValueError, match=message):
        localization_distillation(**arguments)


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["gathered", "dense"])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_module_is_the_sum_over_locations_of_the_mean_over_edges(temperature, share):
    shape = (2, 3, 4, 6, 5, 7)
    student, teacher = random_maps(*shape).requires_grad_(), random_maps(*shape, seed=1)
    region = sparse_region(2, 3, 5, 7, share=share)
    loss = LocalizationDistillation(temperature=temperature).level_loss(
        output(box_params=[None, student]), output(box_params=[None, teacher]), 1, region
    )
    expected = restated(student, teacher, region, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, student)[0], rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize("locations", [0, 1, 8, 9, 35])
def test_an_almost_empty_level_equals_the_dense_kernel(locations):
    """Eight of 35 locations are gathered, nine are not."""
    student, teacher = random_maps(1, 1, 4, 17, 5, 7).requires_grad_(), random_maps(1, 1, 4, 17, 5, 7, seed=1)
    region = torch.zeros(1, 1, 5, 7)
    region.flatten()[torch.randperm(35)[:locations]] = torch.rand(locations) + 0.1
    module = LocalizationDistillation()
    loss = module.level_loss(output(box_params=[student]), output(box_params=[teacher]), 0, region)
    dense = (localization_distillation(student, teacher, dim=3).mean(2) * region).sum()
    torch.testing.assert_close(loss, dense, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.autograd.grad(dense, student)[0], rtol=1e-12, atol=1e-18)


def test_sum_over_bins_of_a_module_is_larger_by_their_number():
    student, teacher = random_maps(1, 1, 4, 17, 2, 2), random_maps(1, 1, 4, 17, 2, 2, seed=1)
    mean, total = (
        LocalizationDistillation(bin_reduction=reduction).level_loss(
            output(box_params=[student]), output(box_params=[teacher]), 0, torch.ones(1, 1, 2, 2)
        )
        for reduction in ("mean", "sum")
    )
    torch.testing.assert_close(total, 17 * mean)


@pytest.mark.parametrize(
    "source, teacher, message",
    [
        (
            spec("RetinaNet", bins=None),
            spec("GFL"),
            r"student \(RetinaNet\) has none and the teacher \(GFL\) has 17 \(reg_max=16\)",
        ),
        (spec("GFL"), spec("ATSS", bins=None), r"\(GFL\) has 17 \(reg_max=16\) and the teacher \(ATSS\) has none"),
        (spec("FCOS", bins=None), spec("FCOS", bins=None), r"\(FCOS\) has none and the teacher \(FCOS\) has none"),
        (spec("GFL"), spec("GFL", bins=9), r"17 \(reg_max=16\).*9 \(reg_max=8\).*head.reg_max"),
    ],
)
def test_a_pair_without_equal_bins_is_refused(source, teacher, message):
    with pytest.raises(ValueError, match=message) as error:
        LocalizationDistillation().check_pair(source, teacher)
    for word in ("GFL", "DistributionRetinaNet", "DistributionFCOS", "DistributionATSS", "or use IoULocalizationKD"):
        assert word in str(error.value)


def test_a_pair_with_equal_bins_is_taken():
    LocalizationDistillation().check_pair(spec("DistributionFCOS"), spec("GFL"))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"temperature": 0}, "LocalizationDistillation.temperature is 0, expected a finite number > 0"),
        ({"temperature": "10"}, "LocalizationDistillation.temperature is '10'"),
        ({"temperature": float("nan")}, "LocalizationDistillation.temperature is nan"),
        ({"bin_reduction": "none"}, "LocalizationDistillation.bin_reduction is 'none', expected one of mean, sum"),
    ],
)
def test_arguments_that_mean_nothing_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LocalizationDistillation(**kwargs)
