"""TemperatureFreeClassificationKD: BCKD's loss by default, and a part on the classes' relations in its own region."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from d2kd.losses import BinaryClassificationKD, TemperatureFreeClassificationKD, pearson_kd
from d2kd.regions import REGION_REGISTRY
from tests.losses.fake_outputs import output, random_maps, sparse_region, spec

KINDS = ("sigmoid", "sigmoid+pearson")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def maps(seed: int, levels: int = 2) -> list[Tensor]:
    return [random_maps(2, 3, 6, 5 - level, 7, seed=10 * seed + level) for level in range(levels)]


def weights(loss: TemperatureFreeClassificationKD, share: float = 0.9) -> list[Tensor]:
    """Weights of two levels, for each term if there are several."""
    levels = [sparse_region(len(loss.regions), 2, 3, 5 - level, 7, share=share) for level in range(2)]
    return levels if len(loss.regions) > 1 else [x.squeeze(0) for x in levels]


def run(loss: TemperatureFreeClassificationKD, student: list[Tensor], teacher: list[Tensor], region: list[Tensor]):
    """The sums, and the gradient of them together at the student's logits."""
    student = [x.clone().requires_grad_() for x in student]
    sums = loss(output(logits=student), output(logits=teacher), region)
    assert sums.shape == ((2, 2) if len(loss.regions) > 1 else (2,))
    return sums.detach(), torch.autograd.grad(sums.sum(), student)


@pytest.mark.parametrize("kwargs", [{}, dict(beta=2.0), dict(source="crossed", tail=2)])
def test_by_default_it_is_the_loss_of_bckd(kwargs):
    loss, bckd = TemperatureFreeClassificationKD(**kwargs), BinaryClassificationKD(**kwargs)
    assert loss.regions == bckd.regions and (loss.regions[0].name, loss.regions[0].normalizer) == (
        "all_locations",
        "positives",
    )
    assert (loss.task, loss.source, loss.tail) == (bckd.task, bckd.source, bckd.tail)
    results = [run(x, maps(0), maps(1), weights(loss)) for x in (loss, bckd)]
    assert torch.equal(results[0][0], results[1][0]) and results[0][0].all()
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@EVERY_KIND
def test_equal_logits_give_nothing(kind):
    loss = TemperatureFreeClassificationKD(kind=kind)
    sums, grads = run(loss, maps(0), maps(0), weights(loss))
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)
    assert all(not grad.any() for grad in grads)
    sums, grads = run(loss, maps(0), maps(1), weights(loss))
    assert (sums > 0.01).all() and all(grad.any() for grad in grads)


@EVERY_KIND
def test_an_empty_region_gives_a_connected_zero(kind):
    """As with no object, no positive, or every location ignored."""
    loss = TemperatureFreeClassificationKD(kind=kind)
    sums, grads = run(loss, maps(0), maps(1), [torch.zeros_like(x) for x in weights(loss)])
    assert not sums.any() and all(not grad.any() for grad in grads)


@EVERY_KIND
def test_a_level_of_one_location(kind):
    student = random_maps(1, 1, 6, 1, 1).requires_grad_()
    loss = TemperatureFreeClassificationKD(kind=kind)
    region = torch.full((len(loss.regions), 1, 1, 1, 1), 0.7)
    region = region if len(loss.regions) > 1 else region[0]
    sums = loss(output(logits=[student]), output(logits=[random_maps(1, 1, 6, 1, 1, seed=1)]), [region])
    (grad,) = torch.autograd.grad(sums.sum(), student)
    assert sums.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY_KIND
def test_half_precision_maps_give_finite_float32(kind, dtype):
    loss = TemperatureFreeClassificationKD(kind=kind)
    student, teacher = ([10 * x.to(dtype) for x in maps(seed)] for seed in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums, grads = run(loss, student, teacher, weights(loss))
    assert sums.dtype == torch.float32 and sums.isfinite().all()
    assert all(grad.dtype == dtype and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("share", [0.1, 0.9], ids=["gathered", "dense"])
def test_parts_are_the_weighted_sums_over_a_level(share):
    loss = TemperatureFreeClassificationKD(kind="sigmoid+pearson", eta=0.3)
    student, teacher, region = maps(0), maps(1), weights(loss, share)
    sums, grads = run(loss, student, teacher, region)
    alone = TemperatureFreeClassificationKD()
    for level in range(2):
        z = student[level].clone().requires_grad_()
        sigmoid = alone.level_loss(output(logits=[None, z]), output(logits=[None, teacher[level]]), 1, region[level][0])
        pearson = 0.3 * pearson_kd(z, teacher[level], weight=region[level][1], dim=2, reduction="sum")
        torch.testing.assert_close(sums[level], torch.stack([sigmoid, pearson]).detach(), rtol=1e-6, atol=0)
        expected = torch.autograd.grad(sigmoid + pearson, z)[0]
        torch.testing.assert_close(grads[level], expected, rtol=1e-6, atol=1e-9)


def test_sigmoid_and_pearson_each_have_their_region_and_normalizer():
    """The regions made as the parts say, each part divided by what it says."""
    options = dict(beta=1.5, region="positives", quality_region={"name": "teacher_quality"})
    both = TemperatureFreeClassificationKD(kind="sigmoid+pearson", eta=0.3, **options)
    alone = TemperatureFreeClassificationKD(**options)
    source, teacher = (output(logits=[x.float() for x in maps(seed)], centerness=None) for seed in (0, 1))
    labels = [torch.randint(-1, 7, (2, 3, 5 - i, 7), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    positives = [(x >= 0) & (x < 6) for x in labels]
    assignment = SimpleNamespace(labels=labels, positives=positives, num_classes=6)

    def total(loss: TemperatureFreeClassificationKD) -> float:
        regions = [REGION_REGISTRY.get(term.name)(source, teacher, assignment, **term.options) for term in loss.regions]
        divisors = [
            {"positives": sum(x.sum() for x in positives), "locations": sum(x.sum() for x in region)}[term.normalizer]
            for term, region in zip(loss.regions, regions, strict=True)
        ]
        stacked = [torch.stack(levels) if len(levels) > 1 else levels[0] for levels in zip(*regions, strict=True)]
        sums = loss(source, teacher, stacked).view(2, len(loss.regions))
        return (sums / torch.stack(divisors)).sum().item()

    quality = REGION_REGISTRY.get("teacher_quality")(source, teacher, assignment)
    pearson = sum(
        pearson_kd(s, t, weight=weight, dim=2, reduction="sum")
        for s, t, weight in zip(source.logits, teacher.logits, quality, strict=True)
    )
    pearson = (pearson / sum(x.sum() for x in quality)).item()
    assert total(both) == pytest.approx(total(alone) + 0.3 * pearson, rel=1e-6)
    assert total(alone) > 0.01 and pearson > 0.01
    assert [spec.label for spec in both.regions] == ["sigmoid", "pearson"]


def test_regions_of_each_kind():
    def regions(**kwargs) -> list[tuple]:
        made = TemperatureFreeClassificationKD(**kwargs).regions
        return [(spec.name, dict(spec.options), spec.normalizer) for spec in made]

    quality = ("teacher_quality", {"centerness": True}, "locations")
    assert regions(kind="sigmoid+pearson") == [("all_locations", {}, "positives"), quality]
    assert regions(kind="sigmoid+pearson", region="gap", normalizer="images", quality_region="positives") == [
        ("gap", {}, "images"),
        ("positives", {}, "locations"),
    ]
    assert regions(quality_region="positives", normalizer="none") == [("all_locations", {}, "none")]


@EVERY_KIND
def test_classes_too_few_to_compare_are_warned_of(kind, caplog):
    loss = TemperatureFreeClassificationKD(kind=kind)
    with caplog.at_level(logging.WARNING):
        for classes in (1, 2, 3):
            loss.check_pair(spec(num_classes=classes), spec(num_classes=classes))
    found = [int(record.message.split("num_classes=")[1][0]) for record in caplog.records]
    assert found == ([1, 2] if kind == "sigmoid+pearson" else [])
    assert all("kind='sigmoid+pearson'" in record.message for record in caplog.records)


def test_two_classes_once_standardised_say_nothing():
    student, teacher = (random_maps(40, 2, seed=seed).requires_grad_() for seed in (0, 1))
    same = (student.argmax(1) == teacher.argmax(1))[:, None]
    (grad,) = torch.autograd.grad(pearson_kd(student, teacher, reduction="sum"), student)
    assert same.any() and (grad * same).abs().max() < 1e-3


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(kind="pearson"), "kind is 'pearson', expected one of sigmoid, sigmoid.pearson"),
        (dict(kind=None), "kind is None, expected one of"),
        (dict(beta=-1), "beta is -1, expected a finite number >= 0"),
        (dict(beta=float("nan")), "beta is nan, expected a finite number >= 0"),
        (dict(eta=0), "eta is 0, expected a finite number > 0"),
        (dict(eta="1"), "eta is '1', expected a finite number > 0"),
        (dict(quality_region="quality"), "quality_region is 'quality', expected one of"),
        (
            dict(quality_region={"name": "teacher_quality", "centerness": 1}),
            "quality_region 'teacher_quality': centerness is 1",
        ),
    ],
)
def test_fields_that_mean_nothing_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f"TemperatureFreeClassificationKD.{message}"):
        TemperatureFreeClassificationKD(**kwargs)


@EVERY_KIND
def test_a_printed_term_shows_every_field(kind):
    printed = repr(TemperatureFreeClassificationKD(kind=kind, eta=0.5))
    region = "{'name': 'teacher_quality', 'centerness': True}"
    assert printed.endswith(f"beta=1.0, kind={kind}, eta=0.5, quality_region={region})")
