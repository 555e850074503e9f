import inspect
import math

import pytest
import torch
from torch import Tensor

from d2kd.losses import localization_distillation
from d2kd.losses.dynamic_localization import (
    DynamicLocalizationDistillation,
    dynamic_localization_kd,
    std_temperature,
)
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec

SHAPE = (2, 3, 4, 6, 5, 7)  # (N, A, 4, n+1, H, W)

#: Every kind, with every choice that changes it.
CASES = [dict(kind="std"), dict(kind="std", kappa=2.0), dict(kind="learned", learn_iters=0), dict(kind="fixed")]
EVERY_KIND = pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(map(str, fields.values())))


def build(**fields) -> DynamicLocalizationDistillation:
    return DynamicLocalizationDistillation(**{"region": "teacher_quality", **fields})


def run(loss: DynamicLocalizationDistillation, student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """Its second level."""
    return loss.level_loss(output(box_params=[None, student]), output(box_params=[None, teacher]), 1, region)


def maps(scale: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = (random_maps(*SHAPE, seed=seed, dtype=dtype) * scale for seed in range(2))
    return student.requires_grad_(), teacher


def expected_temperature(fields: dict, teacher: Tensor) -> Tensor:
    """The specification's formulas, a number or (N, A, 4, 1, H, W)."""
    if fields["kind"] == "fixed":
        return torch.tensor(10.0, dtype=torch.float64)
    if fields["kind"] == "learned":
        return (1 + 20 * torch.tensor(1.0).sigmoid()).double()
    deviation = (teacher - teacher.mean(3, keepdim=True)).square().mean(3, keepdim=True).sqrt()
    return (fields.get("kappa", 1.0) * deviation).clamp(1.0, 10.0)


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["gathered", "dense"])
@EVERY_KIND
def test_is_the_formula_left_to_autograd(fields, share):
    student, teacher = maps()
    region = sparse_region(2, 3, 5, 7, share=share)
    loss = run(build(**fields), student, teacher, region)
    t = expected_temperature(fields, teacher)
    p, q = (teacher / t).softmax(3), (student / t).softmax(3)
    kl = (p * (p.log() - q.log())).sum(3, keepdim=True) * t * t
    expected = (region[:, :, None] * kl.squeeze(3)).sum() / 4
    # A learned temperature is a float32 parameter.
    tolerance = dict(rtol=1e-5, atol=1e-7) if fields["kind"] == "learned" else dict(rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, expected, **tolerance)
    grads = [torch.autograd.grad(x, student)[0] for x in (loss, expected)]
    torch.testing.assert_close(*grads, **tolerance)


@EVERY_KIND
def test_equal_bins_give_zero_and_no_gradient(fields):
    student, _ = maps()
    loss = build(**fields)
    value = run(loss, student, student.detach().clone(), torch.ones(2, 3, 5, 7))
    assert value.item() == 0
    value.backward()
    assert torch.count_nonzero(student.grad) == 0
    for parameter in loss.parameters():
        assert torch.count_nonzero(parameter.grad) == 0


@EVERY_KIND
def test_a_constant_added_to_all_bins_of_an_edge_changes_nothing(fields):
    student, teacher = maps()
    region = torch.ones(2, 3, 5, 7)
    shift = 50 * random_maps(2, 3, 4, 1, 5, 7, seed=3)
    plain = run(build(**fields), student, teacher, region)
    (grad,) = torch.autograd.grad(plain, student)
    for moved in ((student + shift, teacher), (student, teacher + shift), (student - shift, teacher + 2 * shift)):
        value = run(build(**fields), *moved, region)
        torch.testing.assert_close(value, plain, rtol=1e-9, atol=0)
        torch.testing.assert_close(torch.autograd.grad(value, student)[0], grad, rtol=1e-7, atol=1e-10)


@EVERY_KIND
def test_no_gradient_reaches_a_temperature_but_a_learned_one(fields):
    student, teacher = maps()
    loss = build(**fields)
    temperature = loss.temperature_of(teacher.requires_grad_())
    assert (isinstance(temperature, Tensor) and temperature.requires_grad) == (fields["kind"] == "learned")
    assert bool(list(loss.parameters())) == (fields["kind"] == "learned")
    run(loss, student, teacher, torch.ones(2, 3, 5, 7)).backward()
    assert teacher.grad is None


@EVERY_KIND
def test_an_empty_region_gives_a_connected_zero(fields):
    student, teacher = maps()
    loss = build(**fields)
    value = run(loss, student, teacher, torch.zeros(2, 3, 5, 7))
    assert value.item() == 0
    value.backward()
    assert torch.count_nonzero(student.grad) == 0
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY_KIND
def test_half_precision_maps_under_autocast_give_a_finite_float32_loss(fields, dtype):
    student, teacher = (x.detach().to(dtype) for x in maps(scale=30.0, dtype=torch.float32))
    student.requires_grad_()
    region = torch.ones(2, 3, 5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = run(build(**fields), student, teacher, region)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    exact = run(build(**fields), student.detach().double().requires_grad_(), teacher.double(), region)
    torch.testing.assert_close(loss.double(), exact.double(), rtol=1e-4, atol=0)
    (grad,) = torch.autograd.grad(loss, student)
    assert grad.dtype == dtype and torch.isfinite(grad).all()


def test_fixed_at_10_is_ld_with_the_sum_over_bins_for_their_mean():
    student, teacher = random_maps(1, 1, 4, 17, 2, 2), random_maps(1, 1, 4, 17, 2, 2, seed=1)
    ld = localization_distillation(student, teacher, temperature=10.0, dim=3)
    torch.testing.assert_close(dynamic_localization_kd(student, teacher, temperature=10.0, dim=3), 17 * ld)
    region = random_maps(1, 1, 2, 2, seed=2).abs()
    torch.testing.assert_close(
        run(build(kind="fixed"), student, teacher, region), 17 * (ld.mean(2) * region).sum(), rtol=1e-12, atol=0
    )


def test_bins_that_are_the_teachers_times_a_factor_have_a_loss():
    teacher = 4 * random_maps(*SHAPE)
    assert run(build(t_min=1e-3, t_max=1e3), 0.5 * teacher, teacher, torch.ones(2, 3, 5, 7)) > 1


def test_gradcheck_with_temperatures_of_edges():
    student, teacher = random_maps(3, 4, 5).requires_grad_(), random_maps(3, 4, 5, seed=1)
    weight = random_maps(3, 4, seed=2)
    temperature = random_maps(3, 4, 1, seed=3).abs() + 0.5

    def kernel(bins: Tensor) -> Tensor:
        return dynamic_localization_kd(bins, teacher, temperature=temperature, weight=weight)

    assert torch.autograd.gradcheck(kernel, (student,))


def test_weight_and_reductions():
    student, teacher = random_maps(5, 4, 17), random_maps(5, 4, 17, seed=1)
    weight = random_maps(5, 4, seed=2).abs()
    edges = dynamic_localization_kd(student, teacher, temperature=3.0)

    def kernel(**kwargs) -> Tensor:
        return dynamic_localization_kd(student, teacher, temperature=3.0, weight=weight, **kwargs)

    torch.testing.assert_close(kernel(), weight * edges)
    torch.testing.assert_close(kernel(reduction="sum"), (weight * edges).sum())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"weight": torch.zeros(2, 4, 1)}, r"weight.*expected \(2, 4\), found \(2, 4, 1\)"),
        ({"weight": torch.zeros(2, 4, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "mean"}, "reduction must be .* found 'mean'"),
        ({"teacher_bins": torch.zeros(2, 4, 9)}, r"\(2, 4, 17\) and \(2, 4, 9\)"),
        ({"temperature": torch.ones(2, 4)}, r"temperature must broadcast to \(2, 4, 1\)"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = dict(student_bins=torch.zeros(2, 4, 17), teacher_bins=torch.zeros(2, 4, 17), temperature=1.0)
    with pytest.raises(ValueError, match=message):
        dynamic_localization_kd(**{**arguments, **kwargs})


# ---- the temperature ----------------------------------------------------------------------------------------------


def temperature(bins: Tensor, **fields) -> Tensor:
    return std_temperature(bins, **{"kappa": 1.0, "t_min": 1.0, "t_max": 10.0, **fields})


def test_std_is_the_populations_and_clipped():
    bins = torch.tensor([[0.0, 2.0, 4.0], [0.0, 0.2, 0.4], [0.0, 200.0, 400.0]])
    expected = torch.tensor([[math.sqrt(8 / 3)], [1.0], [10.0]])
    torch.testing.assert_close(temperature(bins), expected)
    halved = torch.tensor([[0.5], [0.05]]) * expected[0]
    torch.testing.assert_close(temperature(bins, kappa=0.5, t_min=0.01)[:2], halved)


def test_std_rises_with_the_scale_of_the_logits_from_one_bound_to_the_other():
    bins = random_maps(50, 17)
    found = torch.stack([temperature(bins * scale, t_min=0.5, t_max=7.0) for scale in (0, 0.6, 1, 2, 4, 1e6)])
    assert found.shape == (6, 50, 1)
    torch.testing.assert_close(found[0], torch.full((50, 1), 0.5, dtype=torch.float64))
    assert (found[1:5].diff(dim=0) > 0).all()
    torch.testing.assert_close(found[5], torch.full((50, 1), 7.0, dtype=torch.float64))


@pytest.mark.parametrize("dim", [0, 1, 3, -2])
def test_std_of_any_axis_of_any_view(dim):
    bins = 3 * random_maps(2, 5, 3, 4).transpose(1, 2)
    torch.testing.assert_close(temperature(bins, dim=dim).movedim(dim, -1), temperature(bins.movedim(dim, -1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_std_of_half_precision_is_computed_in_float32(dtype):
    bins = 10 * random_maps(6, 17, dtype=torch.float32).to(dtype)
    assert torch.equal(temperature(bins), temperature(bins.float()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_std_does_not_hide_a_logit_that_is_not_finite(value):
    bins = random_maps(3, 17)
    bins[1, 2] = value
    assert torch.isfinite(temperature(bins)).flatten().tolist() == [True, False, True]


# ---- the module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, teacher, message",
    [
        (spec("FCOS", bins=None), spec("GFL"), r"\(FCOS\) has none and the teacher \(GFL\) has 17 \(reg_max=16\)"),
        (spec("FCOS", bins=None), spec("FCOS", bins=None), r"has none and the teacher \(FCOS\) has none.*DynamicBoxKD"),
        (spec("GFL"), spec("GFL", bins=9), r"17 \(reg_max=16\).*9 \(reg_max=8\).*head.reg_max"),
    ],
)
def test_a_pair_without_equal_bins_is_refused(source, teacher, message):
    with pytest.raises(ValueError, match=message):
        build().check_pair(source, teacher)
    build().check_pair(spec("DistributionFCOS"), spec("GFL"))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(kind="var"), "kind is 'var', expected one of std, learned, fixed"),
        (dict(kappa=0), "kappa is 0, expected a finite number > 0"),
        (dict(t_min=-1.0), "t_min is -1.0, expected a finite number > 0"),
        (dict(t_max=1.0), r"t_max is 1.0, expected a finite number > t_min \(1.0\)"),
        (dict(temperature="10"), "temperature is '10', expected a finite number > 0"),
        (dict(learn_iters=-1), "learn_iters is -1, expected a whole number >= 0"),
        (dict(learn_iters=True), "learn_iters is True, expected a whole number"),
        (dict(t_start=0), "t_start is 0, expected a finite number > 0"),
        (dict(t_span=-1.0), "t_span is -1.0, expected a finite number > 0"),
    ],
)
def test_arguments_that_mean_nothing_are_named(fields, message):
    with pytest.raises(ValueError, match=f"DynamicLocalizationDistillation.{message}"):
        build(**fields)


def test_defaults_and_what_a_printed_term_shows():
    text = repr(DynamicLocalizationDistillation())
    for shown in ("kind=std", "region=teacher_quality", "{'centerness': True}", "normalizer=locations"):
        assert shown in text
    parameters = inspect.signature(DynamicLocalizationDistillation.__init__).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert len(names) == 10 and all(f"{name}=" in text for name in names)
