"""TID's loss on maps and areas made here; its areas are tested with the regions."""

import inspect

import pytest
import torch

from d2kd.losses.feature import FeatureLoss
from d2kd.losses.standardize import standardized_difference
from d2kd.losses.task_integration import TaskIntegrationKD, teacher_attention
from d2kd.regions.task_integration import task_integration
from tests.losses.fake_outputs import output, random_maps
from tests.regions.task_scenes import SIZES, scene

N, C = 2, 6
OVER = (0, 2, 3)


def maps(requires_grad=False):
    student = [random_maps(N, C, *size, seed=i).requires_grad_(requires_grad) for i, size in enumerate(SIZES)]
    teacher = [3 * random_maps(N, C, *size, seed=9 + i) + 1 for i, size in enumerate(SIZES)]
    return student, teacher


def areas_of(seed=3):
    """Per level, (T, N, 1, H, W): each cell in one area."""
    generator = torch.Generator().manual_seed(seed)
    regions = []
    for size in SIZES:
        which = torch.randint(0, 3, (N, 1, *size), generator=generator)
        weight = torch.rand(N, 1, *size, generator=generator) + 0.1
        regions.append(torch.stack([weight * (which == area) for area in range(3)]))
    return regions


def run(module, student, teacher, regions):
    return module(output(features=student), output(features=teacher), regions)


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


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("feature_norm", ["pearson", "none"])
def test_equals_the_formula_left_to_autograd(feature_norm, attention):
    student, teacher = maps(requires_grad=True)
    regions, weights = areas_of(), (5.0, 0.5, 3.0)
    module = TaskIntegrationKD(feature_norm=feature_norm, attention=attention, area_weights=weights)
    sums = run(module, student, teacher, regions)
    assert sums.shape == (len(SIZES), 3)
    expected = []
    for s, t, region in zip(student, teacher, regions, strict=True):
        if feature_norm == "pearson":
            u, v = ((x - x.mean(OVER, True)) / (x.std(OVER, correction=0, keepdim=True) + 1e-6) for x in (s, t))
            squares = (u - v).square() / 2 / C
        else:
            squares = (s - t).square()
        if attention:
            cells, channels = t.abs().mean(1, keepdim=True) / 0.5, t.abs().mean((2, 3), keepdim=True) / 0.5
            cells = cells.exp() / cells.exp().sum((2, 3), keepdim=True) * cells[0, 0].numel()
            squares = squares * cells * (channels.exp() / channels.exp().sum(1, keepdim=True) * C)
        expected.append(torch.stack([w * (squares * cell).sum() for w, cell in zip(weights, region, strict=True)]))
    expected = torch.stack(expected)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=1e-12)
    cotangent = random_maps(*sums.shape, seed=5)
    grads = torch.autograd.grad(sums, student, cotangent)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, student, cotangent), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_alternatives_change_the_sums():
    student, teacher = maps()
    options = [{}, dict(attention=True), dict(feature_norm="none"), dict(feature_norm="none", attention=True)]
    found = [run(TaskIntegrationKD(**x), student, teacher, areas_of()) for x in options]
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other, rtol=1e-3) for other in found[:i])


@pytest.mark.parametrize("areas", [("weak",), ("rest", "weak"), ("key", "weak", "rest")])
def test_some_areas_in_any_order(areas):
    student, teacher = maps()
    every = dict(zip(("weak", "key", "rest"), zip(*areas_of(), strict=True), strict=True))
    of_all = run(TaskIntegrationKD(area_weights=(4, 2, 1)), student, teacher, areas_of())
    columns = [("weak", "key", "rest").index(area) for area in areas]
    module = TaskIntegrationKD(areas=areas, area_weights=[(4, 2, 1)[i] for i in columns])
    assert [(term.name, term.area) for term in module.parts] == [(area, area) for area in areas]
    regions = [torch.stack([every[area][level] for area in areas]) for level in range(len(SIZES))]
    if len(areas) == 1:
        regions = [region.squeeze(0) for region in regions]
        assert run(module, student, teacher, regions).shape == (len(SIZES),)
    sums = run(module, student, teacher, regions).view(len(SIZES), -1)
    torch.testing.assert_close(sums, of_all[:, columns])


def test_the_control_has_every_cell_alike():
    student, teacher = maps()
    module = TaskIntegrationKD(areas=["all"], area_weights=[7], scores={})
    (term,) = module.parts
    assert (term.region, term.area, term.normalizer) == ("everywhere", None, "level_mean")
    regions = [torch.ones(N, 1, *size) for size in SIZES]
    sums = run(module, student, teacher, regions)
    expected = [standardized_difference(*x, correction=0).sum() for x in zip(student, teacher, strict=True)]
    torch.testing.assert_close(sums, 7 * torch.stack(expected))


def test_teacher_attention():
    features = random_maps(2, 5, 3, 4).requires_grad_()
    spatial, channel = teacher_attention(features)
    assert spatial.shape == (2, 3, 4) and channel.shape == (2, 5)
    assert not spatial.requires_grad and not channel.requires_grad
    torch.testing.assert_close(spatial.mean((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(channel.mean(1), torch.ones(2, dtype=torch.float64))
    size = features.detach().abs()
    assert torch.equal(spatial.flatten(1).argmax(1), size.mean(1).flatten(1).argmax(1))
    assert torch.equal(channel.argmax(1), size.mean((2, 3)).argmax(1))
    sharper = teacher_attention(features, temperature=0.1)[1]
    assert (sharper.amax(1) > channel.amax(1)).all()


# ---- identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(feature_norm="none"), dict(attention=True)])
def test_a_student_equal_to_the_teacher_has_no_loss(options):
    _, teacher = maps()
    student = [x.clone().requires_grad_() for x in teacher]
    sums = run(TaskIntegrationKD(**options), student, teacher, areas_of())
    sums.sum().backward()
    assert not sums.any() and not any(x.grad.any() for x in student)


def test_the_scale_of_the_features_does_not_matter():
    student, teacher = maps()
    sums = run(TaskIntegrationKD(), student, teacher, areas_of())
    scaled = run(TaskIntegrationKD(), [100 * x for x in student], [0.01 * x - 5 for x in teacher], areas_of())
    torch.testing.assert_close(scaled, sums, rtol=1e-3, atol=1e-6)
    raw = TaskIntegrationKD(feature_norm="none")
    times_nine = run(raw, [3 * x for x in student], [3 * x for x in teacher], areas_of())
    torch.testing.assert_close(times_nine, 9 * run(raw, student, teacher, areas_of()))


def test_gradient_reaches_features_and_adapter_alone():
    """... through the areas of two detectors' outputs, which ask for gradient themselves."""
    source, teacher, assignment = scene(2, objects=(4, 0), requires_grad=True)
    source.features = [x.float().detach().requires_grad_() for x in maps()[0]]
    teacher.features = [torch.cat([x, x.flip(1)], 1).float().requires_grad_() for x in maps()[1]]
    module = TaskIntegrationKD(projector_channels=(C, 2 * C), attention=True)
    made = task_integration(source, teacher, assignment)
    prepared = [module.prepare_region(made[term.area]) for term in module.parts]
    sums = module(source, teacher, [torch.stack(levels) for levels in zip(*prepared, strict=True)], assignment)
    assert (sums.sum(0) > 0).all()
    sums.sum().backward()
    assert all(x.grad is not None for x in source.features) and source.features[0].grad.any()
    assert module.adapter.weight.grad.any()
    for x in (*source.logits, *source.boxes, *teacher.logits, *teacher.boxes, *teacher.features):
        assert x.grad is None


def test_images_without_objects_are_all_rest():
    source, teacher, assignment = scene(2, objects=(0, 0))
    source.features, teacher.features = maps()
    module = TaskIntegrationKD()
    made = task_integration(source, teacher, assignment)
    prepared = [module.prepare_region(made[term.area]) for term in module.parts]
    sums = module(source, teacher, [torch.stack(levels) for levels in zip(*prepared, strict=True)], assignment)
    assert not sums[:, :2].any()
    means = torch.stack(
        [standardized_difference(*x, correction=0).sum() for x in zip(source.features, teacher.features, strict=True)]
    )
    torch.testing.assert_close(sums[:, 2], means)


# ---- construction -------------------------------------------------------------------------------------------------


def test_the_areas_are_terms_of_one_region():
    module = TaskIntegrationKD(scores={"min_gap": 0.7, "iou_thresholds": [0.3, 0.6]}, normalizer="locations")
    assert [term.name for term in module.parts] == ["weak", "key", "rest"] == [term.area for term in module.parts]
    assert {term.normalizer for term in module.parts} == {"locations"}
    assert len({term.region_key for term in module.parts}) == 1  # made once
    assert module.parts[0].region == "task_integration"
    assert dict(module.parts[0].options) == {"min_gap": 0.7, "iou_thresholds": (0.3, 0.6)}
    default = TaskIntegrationKD()
    assert {term.normalizer for term in default.parts} == {"level_mean"}
    assert not default.parts[0].options and default.area_weights == (4, 2, 1)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(areas=[]), r"areas is \[\], expected a list of weak, key, rest, each at most once, or \['all'\]"),
        (dict(areas="weak"), "areas is 'weak', expected a list"),
        (dict(areas=["weak", "strong"]), r"areas is \['weak', 'strong'\], expected a list"),
        (dict(areas=["weak", "weak"]), r"areas is \['weak', 'weak'\], expected a list"),
        (dict(areas=["all", "weak"]), r"areas is \['all', 'weak'\], expected a list"),
        (
            dict(areas=["all"]),
            r"area_weights is \(4.0, 2.0, 1.0\), expected .* each of TaskIntegrationKD.areas \(all\)",
        ),
        (dict(area_weights=[4, 2]), r"area_weights is \[4, 2\], expected a list of a number .*\(weak, key, rest\)"),
        (dict(area_weights=[4, 2, -1]), "area_weights is .*, expected a list of a number >= 0"),
        (dict(area_weights=[4, 2, float("nan")]), "area_weights is .*, expected a list of a number >= 0"),
        (dict(area_weights=[4, 2, True]), "area_weights is .*, expected a list of a number >= 0"),
        (dict(area_weights=4), "area_weights is 4, expected a list of a number >= 0"),
        (
            dict(scores={"alpha": 7}),
            "scores: Option alpha of region 'task_integration' is 7, expected a number",
        ),
        (dict(scores={"key_threshold": 5}), "scores: Option key_threshold .* is 5, expected a number"),
        (
            dict(scores={"topk": 7}),
            r"scores '?.*task_integration' has no option 'topk'; it has score, alpha, .*cell_weight",
        ),
        (dict(scores={"area": "weak"}), "scores is {'area': 'weak'}, expected a mapping of options .* without"),
        (dict(scores={"name": "gap"}), "scores is .*, expected a mapping of options"),
        (dict(scores="continuous"), "scores is 'continuous', expected a mapping of options"),
        (
            dict(scores={"alpha": 1}, areas=["all"], area_weights=[1]),
            r"scores is .*, but TaskIntegrationKD.areas is \['all'\]",
        ),
        (dict(feature_norm="batch"), "feature_norm is 'batch', expected one of pearson, none"),
        (dict(attention=1), "attention is 1, expected true or false"),
        (dict(region="gap"), "region is 'gap', expected none: set areas and scores"),
        (dict(normalizer="mean"), "normalizer is 'mean', expected one of"),
    ],
)
def test_options_that_mean_nothing_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f"^TaskIntegrationKD.{message}"):
        TaskIntegrationKD(**kwargs)


def test_a_printed_term_shows_every_argument():
    text = repr(TaskIntegrationKD(scores={"min_gap": 0.7}, attention=True))
    for kind in (FeatureLoss, TaskIntegrationKD):
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name != "normalizer":
                assert f"{name}=" in text
    for area in ("weak", "key", "rest"):
        assert f"region_{area}=task_integration, area_{area}={area}" in text
        assert f"normalizer_{area}=level_mean" in text
    assert "scores={'min_gap': 0.7}, feature_norm=pearson, attention=True" in text


@pytest.mark.parametrize(
    "scores",
    [
        {"score": "continuous", "alpha": 0.5},
        {"combine": "cls"},
        {"combine": "reg"},
        {"iou_thresholds": "atss"},
        {"key_from": "gt"},
        {"min_teacher_score": 2.25},
        {"min_gap": 0.7},
    ],
)
def test_alternatives_are_one_option_away(scores):
    (weak, key, rest) = TaskIntegrationKD(scores=scores).parts
    assert [weak.area, key.area, rest.area] == ["weak", "key", "rest"]
    assert weak.options == key.options == rest.options == scores
