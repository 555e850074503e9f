import inspect

import pytest
import torch
from torch import Tensor

from d2kd.losses.dynamic_box import DynamicBoxKD, weighted_median
from d2kd.losses.laplace_kl import laplace_kl
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec

#: N images, A anchors a cell, (H, W) of the levels.
N, A, SIZES = 2, 3, ((4, 5), (2, 3))
KINDS = ("residual", "fixed")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def build(kind: str = "residual", **fields) -> DynamicBoxKD:
    return DynamicBoxKD(**{"kind": kind, "region": "teacher_quality", **fields})


def params(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        (scale * random_maps(N, A, 4, h, w, seed=10 * seed + level)).to(dtype) for level, (h, w) in enumerate(SIZES)
    ]


def regions(share: float = 0.6) -> list[Tensor]:
    return [sparse_region(N, A, h, w, share=share) for h, w in SIZES]


def step(loss: DynamicBoxKD, student: list[Tensor], teacher: list[Tensor], region: list[Tensor]) -> Tensor:
    return loss(output(box_params=student), output(box_params=teacher), region)


def medians(student: list[Tensor], teacher: list[Tensor], region: list[Tensor]) -> Tensor:
    """For each coordinate the weighted median of the distances, by a walk along the sorted list."""
    found = []
    for coordinate in range(4):
        pairs = []
        for s, t, weight in zip(student, teacher, region):
            distance = (s - t)[:, :, coordinate].abs().flatten().tolist()
            pairs += [(d, w) for d, w in zip(distance, weight.double().flatten().tolist()) if w > 0]
        half, below = sum(w for _, w in pairs) / 2, 0.0
        for distance, weight in sorted(pairs):
            below += weight
            if below >= half:
                found.append(distance)
                break
    return torch.tensor(found, dtype=torch.float64)


def restated(student: list[Tensor], teacher: list[Tensor], region: list[Tensor], temperatures: list[Tensor]) -> Tensor:
    levels = []
    for s, t, weight, temperature in zip(student, teacher, region, temperatures):
        distance = (s - t).abs()
        kernel = temperature * ((-distance / temperature).exp() + distance / temperature - 1)
        levels.append((weight[:, :, None] * kernel).sum() / 4)
    return torch.stack(levels)


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["gathered", "dense"])
@EVERY_KIND
def test_is_the_formula_left_to_autograd(kind, share):
    student, teacher, region = [x.requires_grad_() for x in params(0)], params(1), regions(share)
    loss = build(kind)
    value = step(loss, student, teacher, region)
    temperature = torch.tensor(0.1, dtype=torch.float64)
    if kind == "residual":
        temperature = medians(student, teacher, region).clamp(0.01, 1.0).view(4, 1, 1)
    expected = restated(student, teacher, region, [temperature] * 2)
    # The running temperature is float32.
    torch.testing.assert_close(value, expected, rtol=1e-12 if kind == "fixed" else 1e-6, atol=0)
    grads, expected_grads = (torch.autograd.grad(x.sum(), student) for x in (value, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=1e-9)


@EVERY_KIND
def test_equal_parameters_give_zero_and_no_gradient(kind):
    student = [x.requires_grad_() for x in params(0)]
    value = step(build(kind), student, params(0), regions())
    assert torch.equal(value, torch.zeros(2, dtype=torch.float64))
    value.sum().backward()
    assert not any(torch.count_nonzero(x.grad) for x in student)


@EVERY_KIND
def test_an_empty_region_gives_a_connected_zero(kind):
    student = [x.requires_grad_() for x in params(0)]
    value = step(build(kind), student, params(1), [torch.zeros(N, A, h, w) for h, w in SIZES])
    assert torch.equal(value, torch.zeros(2, dtype=torch.float64))
    value.sum().backward()
    assert not any(torch.count_nonzero(x.grad) for x in student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY_KIND
def test_half_precision_maps_under_autocast_give_a_finite_float32_loss(kind, dtype):
    student, teacher = ([x.requires_grad_(seed == 0) for x in params(seed, 100.0, dtype)] for seed in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = step(build(kind), student, teacher, regions())
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    exact = step(build(kind), [x.detach().float() for x in student], [x.float() for x in teacher], regions())
    torch.testing.assert_close(value.detach(), exact.detach(), rtol=1e-6, atol=0)
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(value.sum(), student))


@EVERY_KIND
def test_no_gradient_reaches_a_temperature(kind):
    student, teacher = ([x.requires_grad_() for x in params(seed)] for seed in range(2))
    step(build(kind), student, teacher, regions()).sum().backward()
    assert all(x.grad is None for x in teacher)
    # The slope at a constant temperature, which is below 1.
    assert all((x.grad.abs().amax(2) <= weight / 4).all() for x, weight in zip(student, regions()))


def test_residual_is_clipped_and_rises_with_the_distance():
    for scale, expected in ((1e-4, 0.01), (1e4, 1.0)):
        loss = build()
        step(loss, params(0, scale), params(1, scale), regions())
        torch.testing.assert_close(loss.running_temperature, torch.full((4,), expected))
    small, large = build(), build()
    for loss, scale in ((small, 0.1), (large, 0.2)):
        step(loss, params(0, scale), params(1, scale), regions())
    torch.testing.assert_close(large.running_temperature, 2 * small.running_temperature)


def test_residual_is_a_running_mean_that_an_empty_region_leaves():
    loss, region = build(t_min=1e-3, t_max=1e3), regions()
    empty = [torch.zeros_like(x) for x in region]
    step(loss, params(0), params(1), empty)
    assert torch.equal(loss.running_temperature, torch.zeros(4))
    expected = medians(params(0), params(1), region)
    step(loss, params(0), params(1), region)
    torch.testing.assert_close(loss.running_temperature.double(), expected, rtol=1e-6, atol=0)
    step(loss, params(0), params(1), empty)
    torch.testing.assert_close(loss.running_temperature.double(), expected, rtol=1e-6, atol=0)
    expected = 0.9 * expected + 0.1 * medians(params(2), params(3), region)
    value = step(loss, params(2), params(3), region)
    torch.testing.assert_close(loss.running_temperature.double(), expected, rtol=1e-6, atol=0)
    used = [expected.view(4, 1, 1)] * 2
    torch.testing.assert_close(value, restated(params(2), params(3), region, used), rtol=1e-6, atol=0)


def test_a_second_step_before_the_first_ones_backward_changes_no_gradient():
    grads = []
    for disturb in (False, True):
        loss, student = build(), [x.requires_grad_() for x in params(0, dtype=torch.float32)]
        value = step(loss, student, params(1, dtype=torch.float32), regions()).sum()
        if disturb:
            step(loss, params(2), params(5), regions())
        grads.append(torch.autograd.grad(value, student))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)


def test_the_running_mean_is_saved_and_resumed():
    first, second = build(momentum=0.5), build(momentum=0.5)
    step(first, params(0), params(1), regions())
    assert list(first.state_dict()) == ["running_temperature"]
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        values = [step(loss, params(2), params(3), regions()) for loss in (first, second)]
        assert torch.equal(*values)
    assert torch.equal(first.running_temperature, second.running_temperature)
    assert not torch.equal(values[0], step(build(), params(2), params(3), regions()))


def test_a_fixed_temperature_keeps_no_state():
    loss = build("fixed")
    step(loss, params(0), params(1), regions())
    assert not loss.state_dict() and not list(loss.buffers())


def test_rectified_distances_are_compared_as_they_are_decoded():
    student, teacher, region = [x.requires_grad_() for x in params(0)], params(1), regions()
    loss = build()
    maps = (output(box_params=x, rectified=True) for x in (student, teacher))
    value = loss(*maps, region)
    relu = [x.detach().relu().requires_grad_() for x in student], [x.relu() for x in teacher]
    plain = build()
    expected = step(plain, *relu, region)
    torch.testing.assert_close(value, expected)
    assert torch.equal(loss.running_temperature, plain.running_temperature)
    for grad, kept, x in zip(
        *(torch.autograd.grad(v.sum(), p) for v, p in ((value, student), (expected, relu[0]))), student
    ):
        torch.testing.assert_close(grad, kept * (x > 0))
    assert not torch.allclose(value, step(build(), student, teacher, region))


def test_fixed_is_the_kernel_averaged_over_coordinates():
    student, teacher, region = params(0), params(1), regions()
    kernel = [laplace_kl(s, t, temperature=0.3, dim=2) for s, t in zip(student, teacher)]
    expected = torch.stack([(k / 4 * weight).sum() for k, weight in zip(kernel, region)])
    torch.testing.assert_close(step(build("fixed", temperature=0.3), student, teacher, region), expected)


def test_a_pair_with_bins_or_of_two_codings_is_refused():
    plain = spec("RetinaNet", bins=None)
    for source, teacher, found in (
        (spec("GFL"), spec("GFL"), r"student \(GFL\) and the teacher \(GFL\) have 17 and 17 bins"),
        (plain, spec("RetinaNet"), "have no and 17 bins"),
        (spec("RetinaNet"), plain, "have 17 and no bins"),
    ):
        with pytest.raises(ValueError, match=f"{found}.*DynamicLocalizationDistillation"):
            build().check_pair(source, teacher)
    with pytest.raises(ValueError, match=r"\(RetinaNet\) and the teacher \(FCOS\).*IoULocalizationKD"):
        build().check_pair(plain, spec("FCOS", bins=None))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(kind="std"), "kind is 'std', expected one of residual, fixed"),
        (dict(t_min=0), "t_min is 0, expected a finite number > 0"),
        (dict(t_max=0.005), r"t_max is 0.005, expected a finite number > t_min \(0.01\)"),
        (dict(temperature=float("inf")), "temperature is inf, expected a finite number > 0"),
        (dict(momentum=1.0), "momentum is 1.0, expected a finite number >= 0 and < 1"),
        (dict(momentum="0.9"), "momentum is '0.9'"),
    ],
)
def test_arguments_that_mean_nothing_are_named(fields, message):
    with pytest.raises(ValueError, match=f"DynamicBoxKD.{message}"):
        build(**fields)


def test_defaults_and_what_a_printed_term_shows():
    text = repr(DynamicBoxKD())
    for shown in ("kind=residual", "region=teacher_quality", "{'centerness': True}", "normalizer=locations"):
        assert shown in text
    parameters = inspect.signature(DynamicBoxKD.__init__).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert len(names) == 7 and all(f"{name}=" in text for name in names)


def test_weighted_median_by_a_walk():
    for seed in range(20):
        values = random_maps(3, 15, seed=seed, dtype=torch.float32).abs() * 10 ** (seed / 2 - 5)
        weights = random_maps(15, seed=seed + 100).clamp(min=0)
        for row, found in enumerate(weighted_median(values, weights)):
            at_most, below = (weights[op(values[row], found)].sum() for op in (torch.le, torch.lt))
            assert found in values[row][weights > 0]
            assert at_most >= weights.sum() / 2 > below


def test_weighted_median_of_few():
    values = torch.tensor([[4.0, 1.0, 2.0, 3.0]])

    def of(*weights: float) -> float:
        return weighted_median(values, torch.tensor(weights)).item()

    assert of(1, 1, 1, 1) == 2.0  # the smaller of the two in the middle
    assert of(1, 0, 0, 0) == 4.0
    assert of(3.1, 1, 1, 1) == 4.0
    assert of(2.9, 1, 1, 1) == 3.0
    assert of(0, 0, 0, 5) == 3.0
    assert of(0, 0, 0, 0) != of(0, 0, 0, 0)
    assert weighted_median(values[:, :0], torch.zeros(0)).isnan().tolist() == [True]


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 0.1, 65535.9, 3e38, float("inf")])
def test_weighted_median_of_any_size(value):
    values = torch.tensor([[0.0, value, float("inf")], [value] * 3])
    assert weighted_median(values, torch.tensor([1.0, 1.5, 1.0])).tolist() == values[:, 1].tolist()


def test_weighted_median_does_not_depend_on_the_order():
    values, weights = random_maps(2, 1000, dtype=torch.float32).abs(), random_maps(1000, seed=1).sigmoid()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted_median(values[:, order], weights[order]), weighted_median(values, weights))
