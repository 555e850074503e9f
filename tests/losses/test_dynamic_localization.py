import inspect

import pytest
import torch
from torch import Tensor

from d2kd.losses import localization_distillation
from d2kd.losses.dynamic_localization import DynamicLocalizationDistillation, dynamic_localization_kd
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec

SHAPE = (2, 3, 4, 6, 5, 7)  # (N, A, 4, n+1, H, W)

#: Every kind, with every choice that changes it.
CASES = [
    dict(kind="std"),
    dict(kind="std", share="each"),
    dict(kind="std", share="mean"),
    dict(kind="std", kappa=2.0, grad_scale="none"),
    dict(kind="sharpness"),
    dict(kind="sharpness", tau=2.0, grad_scale="none"),
    dict(kind="entropy"),
    dict(kind="entropy", share="each"),
    dict(kind="entropy", share="mean"),
    dict(kind="learned", learn_iters=0),
    dict(kind="learned", learn_iters=0, per="edge"),
    dict(kind="learned", learn_iters=0, per="level", num_levels=2),
    dict(kind="fixed"),
]
EVERY_KIND = pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(map(str, fields.values())))


def build(**fields) -> DynamicLocalizationDistillation:
    loss = DynamicLocalizationDistillation(**{"region": "teacher_quality", **fields})
    if fields.get("per") == "edge":
        loss.learned_temperature.theta.data = torch.tensor([-2.0, -1.0, 0.5, 1.5])
    elif fields.get("per") == "level":
        loss.learned_temperature.theta.data = torch.tensor([3.0, -1.0])
    return loss


def run(loss: DynamicLocalizationDistillation, student: Tensor, teacher: Tensor, region: Tensor) -> Tensor:
    """Its second level."""
    return loss.level_loss(output(box_params=[None, student]), output(box_params=[None, teacher]), 1, region)


def maps(scale: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    student, teacher = (random_maps(*SHAPE, seed=seed, dtype=dtype) * scale for seed in range(2))
    return student.requires_grad_(), teacher


def clipped(values: Tensor) -> Tensor:
    return values.clamp(1.0, 10.0)


def expected_temperatures(fields: dict, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The specification's formulas, (N, A, 4, 1, H, W)."""
    student, teacher = student.detach(), teacher.detach()
    kind = fields["kind"]
    if kind == "fixed":
        return (torch.tensor(10.0, dtype=torch.float64),) * 2
    if kind == "learned":
        theta = {"edge": torch.tensor([-2.0, -1.0, 0.5, 1.5]).view(4, 1, 1, 1), "level": torch.tensor(-1.0)}
        return ((1 + 20 * theta.get(fields.get("per"), torch.tensor(1.0)).sigmoid()).double(),) * 2
    if kind == "sharpness":
        x, y = (z.amax(3, keepdim=True) - z.mean(3, keepdim=True) for z in (teacher, student))
        tau = fields.get("tau", 4.0)
        return clipped(2 * x / (x + y) * tau), clipped(2 * y / (x + y) * tau)

    def of(z: Tensor) -> Tensor:
        if kind == "std":
            mean = z.mean(3, keepdim=True)
            return clipped(fields.get("kappa", 1.0) * (z - mean).square().mean(3, keepdim=True).sqrt())
        entropy = torch.distributions.Categorical(logits=z.movedim(3, -1)).entropy().unsqueeze(3)
        return 1 + 9 * (1 - entropy / torch.tensor(6.0).double().log())

    share = fields.get("share", "teacher")
    if share == "mean":
        return ((of(teacher) + of(student)) / 2,) * 2
    return of(teacher), of(student if share == "each" else teacher)


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["gathered", "dense"])
@EVERY_KIND
def test_is_the_formula_left_to_autograd(fields, share):
    student, teacher = maps()
    region = sparse_region(2, 3, 5, 7, share=share)
    loss = run(build(**fields), student, teacher, region)
    t, s = expected_temperatures(fields, student, teacher)
    p, q = (teacher / t).softmax(3), (student / s).softmax(3)
    kl = (p * (p.log() - q.log())).sum(3, keepdim=True)
    if fields.get("grad_scale") != "none":
        kl = kl * t * s
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
    temperatures = loss.temperatures(student, teacher.requires_grad_(), 1)
    assert [isinstance(t, Tensor) and t.requires_grad for t in temperatures] == [fields["kind"] == "learned", False]
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


def test_a_shared_temperature_has_its_minimum_at_equal_bins_and_one_each_forgives_a_scale():
    teacher = 4 * random_maps(*SHAPE)
    region = torch.ones(2, 3, 5, 7)
    scaled = 0.5 * teacher
    wide = dict(t_min=1e-3, t_max=1e3)
    assert run(build(share="each", **wide), scaled, teacher, region).item() == pytest.approx(0, abs=1e-9)
    assert run(build(share="teacher", **wide), scaled, teacher, region) > 1
    assert run(build(share="mean", **wide), scaled, teacher, region) > 1


def test_gradcheck_with_temperatures_of_edges():
    student, teacher = random_maps(3, 4, 5).requires_grad_(), random_maps(3, 4, 5, seed=1)
    weight = random_maps(3, 4, seed=2)
    temperature = random_maps(3, 4, 1, seed=3).abs() + 0.5

    def kernel(bins: Tensor) -> Tensor:
        return dynamic_localization_kd(bins, teacher, temperature=temperature, weight=weight, reduction="mean")

    assert torch.autograd.gradcheck(kernel, (student,))


def test_weight_and_reductions():
    student, teacher = random_maps(5, 4, 17), random_maps(5, 4, 17, seed=1)
    weight = random_maps(5, 4, seed=2).abs()
    edges = dynamic_localization_kd(student, teacher, temperature=3.0)

    def kernel(**kwargs) -> Tensor:
        return dynamic_localization_kd(student, teacher, temperature=3.0, weight=weight, **kwargs)

    torch.testing.assert_close(kernel(), weight * edges)
    torch.testing.assert_close(kernel(reduction="sum"), (weight * edges).sum())
    torch.testing.assert_close(kernel(reduction="mean"), (weight * edges).sum() / 20)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"weight": torch.zeros(2, 4, 1)}, r"weight.*without the bins, expected \(2, 4\), found \(2, 4, 1\)"),
        ({"weight": torch.zeros(2, 4, requires_grad=True)}, "weight must not require grad"),
        ({"reduction": "max"}, "reduction must be .* found 'max'"),
        ({"teacher_bins": torch.zeros(2, 4, 9)}, r"\(2, 4, 17\) and \(2, 4, 9\)"),
        ({"temperature": torch.ones(2, 4)}, r"temperature must broadcast to \(2, 4, 1\)"),
        ({"grad_scale": "T2"}, "grad_scale.*'T2'"),
    ],
)
def test_bad_input_is_named(kwargs, message):
    arguments = dict(student_bins=torch.zeros(2, 4, 17), teacher_bins=torch.zeros(2, 4, 17), temperature=1.0)
    with pytest.raises(ValueError, match=message):
        dynamic_localization_kd(**{**arguments, **kwargs})


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
        (dict(kind="var"), "kind is 'var', expected one of std, sharpness, entropy, learned, fixed"),
        (dict(share="student"), "share is 'student', expected one of teacher, each, mean"),
        (dict(grad_scale="T2"), "grad_scale is 'T2', expected one of t2, none"),
        (dict(kappa=0), "kappa is 0, expected a finite number > 0"),
        (dict(t_min=-1.0), "t_min is -1.0, expected a finite number > 0"),
        (dict(t_max=1.0), r"t_max is 1.0, expected a finite number > t_min \(1.0\)"),
        (dict(tau=float("nan")), "tau is nan, expected a finite number > 0"),
        (dict(temperature="10"), "temperature is '10', expected a finite number > 0"),
    ],
)
def test_arguments_that_mean_nothing_are_named(fields, message):
    with pytest.raises(ValueError, match=f"DynamicLocalizationDistillation.{message}"):
        build(**fields)


def test_defaults_and_what_a_printed_term_shows():
    text = repr(DynamicLocalizationDistillation())
    for shown in (
        "kind=std",
        "region=teacher_quality",
        "{'centerness': True}",
        "normalizer=locations",
        "share=teacher",
    ):
        assert shown in text
    parameters = inspect.signature(DynamicLocalizationDistillation.__init__).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert len(names) > 10 and all(f"{name}=" in text for name in names)
