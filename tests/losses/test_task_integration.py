"""TID's loss on maps and regions made here; its regions are tested with the others."""

import inspect

import pytest
import torch

from d2kd.losses.feature import FeatureLoss
from d2kd.losses.standardize import standardized_difference
from d2kd.losses.task_integration import TaskIntegrationKD
from d2kd.regions.task_integration import task_integration
from tests.losses.fake_outputs import output, random_maps
from tests.regions.task_scenes import REGIONS, SIZES, scene

N, C = 2, 6
OVER = (0, 2, 3)


def maps(requires_grad=False):
    student = [random_maps(N, C, *size, seed=i).requires_grad_(requires_grad) for i, size in enumerate(SIZES)]
    teacher = [3 * random_maps(N, C, *size, seed=9 + i) + 1 for i, size in enumerate(SIZES)]
    return student, teacher


def regions_of_cells(seed=3):
    """Per level, (R, N, 1, H, W): each cell in one region."""
    generator = torch.Generator().manual_seed(seed)
    regions = []
    for size in SIZES:
        which = torch.randint(0, 3, (N, 1, *size), generator=generator)
        weight = torch.rand(N, 1, *size, generator=generator) + 0.1
        regions.append(torch.stack([weight * (which == region) for region in range(3)]))
    return regions


def run(module, student, teacher, regions):
    return module(output(features=student), output(features=teacher), regions)


def run_scene(module, source, teacher, assignment):
    made = task_integration(source, teacher, assignment)
    prepared = [module.prepare_region(made[spec.member]) for spec in module.regions]
    return module(source, teacher, [torch.stack(levels) for levels in zip(*prepared, strict=True)])


# ---- what is summed -----------------------------------------------------------------------------------------------


def test_by_hand():
    """Two channels, one image, four cells; population deviations."""
    student = torch.tensor([[1.0, 2, 3, 6], [0, 0, 0, 8]], dtype=torch.float64).view(1, 2, 2, 2)
    teacher = torch.tensor([[3.0, 1, 1, 3], [1, 1, 5, 5]], dtype=torch.float64).view(1, 2, 2, 2)
    root = 3.5**0.5  # deviation of the student's first channel, mean 3; of its second 2 sqrt(3), mean 2
    s = torch.tensor([[-2 / root, -1 / root, 0, 3 / root], [-(3**-0.5)] * 3 + [3**0.5]]).view(1, 2, 2, 2)
    t = torch.tensor([[1.0, -1, -1, 1], [-1, -1, 1, 1]]).view(1, 2, 2, 2)
    cells = ((s - t) ** 2).mean(1).flatten() / 2
    weights = torch.tensor([[0.5, 0, 0, 0], [0, 0.25, 0, 0], [0, 0, 1, 1]]).view(3, 1, 1, 2, 2)
    (sums,) = run(TaskIntegrationKD(), [student], [teacher], [weights])
    expected = torch.stack([4 * 0.5 * cells[0], 2 * 0.25 * cells[1], cells[2] + cells[3]])
    torch.testing.assert_close(sums.float(), expected, rtol=1e-5, atol=0)


def test_equals_the_formula_left_to_autograd():
    student, teacher = maps(requires_grad=True)
    regions, weights = regions_of_cells(), {"rest": 3.0, "weak": 5.0, "key": 0.5}  # of any order
    sums = run(TaskIntegrationKD(region_weights=weights), student, teacher, regions)
    assert sums.shape == (len(SIZES), 3)
    expected = []
    for s, t, region in zip(student, teacher, regions, strict=True):
        u, v = ((x - x.mean(OVER, True)) / (x.std(OVER, correction=0, keepdim=True) + 1e-6) for x in (s, t))
        squares = (u - v).square() / 2 / C
        expected.append(torch.stack([weights[x] * (squares * region[i]).sum() for i, x in enumerate(REGIONS)]))
    expected = torch.stack(expected)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=1e-12)
    cotangent = random_maps(*sums.shape, seed=5)
    grads = torch.autograd.grad(sums, student, cotangent)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, student, cotangent), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


# ---- identities ---------------------------------------------------------------------------------------------------


def test_a_student_equal_to_the_teacher_has_no_loss():
    _, teacher = maps()
    student = [x.clone().requires_grad_() for x in teacher]
    sums = run(TaskIntegrationKD(), student, teacher, regions_of_cells())
    sums.sum().backward()
    assert not sums.any() and not any(x.grad.any() for x in student)


def test_the_scale_of_the_features_does_not_matter():
    student, teacher = maps()
    sums = run(TaskIntegrationKD(), student, teacher, regions_of_cells())
    scaled = run(TaskIntegrationKD(), [100 * x for x in student], [0.01 * x - 5 for x in teacher], regions_of_cells())
    torch.testing.assert_close(scaled, sums, rtol=1e-3, atol=1e-6)


def test_gradient_reaches_features_and_projector_alone():
    """... through the regions of two detectors' outputs, which ask for gradient themselves."""
    source, teacher, assignment = scene(2, objects=(4, 0), requires_grad=True)
    source.features = [x.float().detach().requires_grad_() for x in maps()[0]]
    teacher.features = [torch.cat([x, x.flip(1)], 1).float().requires_grad_() for x in maps()[1]]
    module = TaskIntegrationKD(projector_channels=(C, 2 * C))
    sums = run_scene(module, source, teacher, assignment)
    assert (sums.sum(0) > 0).all()
    sums.sum().backward()
    assert all(x.grad is not None for x in source.features) and source.features[0].grad.any()
    assert module.projector.weight.grad.any()
    for x in (*source.logits, *source.boxes, *teacher.logits, *teacher.boxes, *teacher.features):
        assert x.grad is None


def test_images_without_objects_are_all_rest():
    source, teacher, assignment = scene(2, objects=(0, 0))
    source.features, teacher.features = maps()
    sums = run_scene(TaskIntegrationKD(), source, teacher, assignment)
    assert not sums[:, :2].any()
    means = torch.stack(
        [standardized_difference(*x, correction=0).sum() for x in zip(source.features, teacher.features, strict=True)]
    )
    torch.testing.assert_close(sums[:, 2], means)


# ---- construction -------------------------------------------------------------------------------------------------


def test_its_regions_are_made_by_one_function():
    module = TaskIntegrationKD(combine="sum", min_teacher_score=3, normalizer="locations")
    assert [spec.label for spec in module.regions] == list(REGIONS)
    assert [spec.name for spec in module.regions] == [f"task_integration.{region}" for region in REGIONS]
    assert {spec.normalizer for spec in module.regions} == {"locations"}
    assert len({spec.function_key for spec in module.regions}) == 1  # made once
    assert module.regions[0].options == {"combine": "sum", "min_teacher_score": 3}
    default = TaskIntegrationKD()
    assert {spec.normalizer for spec in default.regions} == {"level_mean"}
    assert default.regions[0].options == {"combine": "product", "min_teacher_score": 0}
    assert default.region_weights == {"weak": 4, "key": 2, "rest": 1}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            dict(region_weights={}),
            "region_weights is {}, expected a mapping of a number >= 0 for each of weak, key,",
        ),
        (dict(region_weights={"weak": 4, "key": 2}), "region_weights is .*, expected a mapping"),
        (dict(region_weights={"weak": 4, "key": 2, "rest": 1, "all": 1}), "region_weights is .*, expected a mapping"),
        (dict(region_weights={"weak": 4, "key": 2, "rest": -1}), "region_weights is .*, expected a mapping"),
        (dict(region_weights={"weak": 4, "key": 2, "rest": float("nan")}), "region_weights is .*, expected a mapping"),
        (dict(region_weights={"weak": 4, "key": 2, "rest": True}), "region_weights is .*, expected a mapping"),
        (dict(region_weights=[4, 2, 1]), r"region_weights is \[4, 2, 1\], expected a mapping"),
        (
            dict(combine="max"),
            "region 'task_integration.weak': combine is 'max', expected one of product, sum, cls, reg",
        ),
        (dict(min_teacher_score=5), r"region .*: min_teacher_score is 5, expected a number in \[0, 4\]"),
        (dict(region="gap"), "region is 'gap', expected none: the loss has its own regions"),
        (dict(normalizer="mean"), "normalizer is 'mean', expected one of"),
    ],
)
def test_options_that_mean_nothing_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f"^TaskIntegrationKD.{message}"):
        TaskIntegrationKD(**kwargs)


def test_a_printed_term_shows_every_argument():
    text = repr(TaskIntegrationKD(min_teacher_score=2.25))
    for kind in (FeatureLoss, TaskIntegrationKD):
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name != "normalizer":
                assert f"{name}=" in text
    for region in REGIONS:
        assert f"region_{region}=task_integration.{region}, " in text
        assert f"normalizer_{region}=level_mean" in text
    assert text.endswith(
        "region_weights={'weak': 4.0, 'key': 2.0, 'rest': 1.0}, combine=product, min_teacher_score=2.25)"
    )
