"""FTPD's regions: location by location, in plain Python."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from d2kd.regions import (
    REGION_REGISTRY,
    main_and_valuable_region,
    top_quality_region,
    valuable_localization_region,
)

# N images, A anchors a cell and (H, W) of each level; K classes
N, A, K = 3, 2, 4
SIZES = [(5, 6), (2, 3), (1, 1)]


def scene(centerness=True):
    """Source, teacher and assignment of three images, the second without objects, a fifth of the locations ignored."""
    generator = torch.Generator().manual_seed(5)
    anchors, levels = [], []
    for (h, w), stride in zip(SIZES, (8, 16, 32), strict=True):
        y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
        half = stride * (0.7 + torch.rand(A, h, w, 2, generator=generator))
        anchors.append(torch.cat([torch.stack([x, y], dim=-1) - half, torch.stack([x, y], dim=-1) + half], dim=-1))
        labels = torch.where(
            torch.rand(N, A, h, w, generator=generator) > 0.7,
            torch.randint(0, K, (N, A, h, w), generator=generator),
            K,
        )
        labels[torch.rand(N, A, h, w, generator=generator) < 0.2] = -1
        labels[1] = labels[1].clamp(min=K) if h > 1 else labels[1]
        logits, branch = (torch.randn(N, A, k, h, w, generator=generator) * 2 for k in (K, 1))
        levels.append((logits.requires_grad_(), branch.squeeze(2).requires_grad_(), labels))
    logits, branches, labels = map(list, zip(*levels, strict=True))
    corners = 25 * torch.rand(N, 4, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(N, 4, 2, generator=generator)], dim=-1)
    teacher = SimpleNamespace(logits=logits, class_dim=2, centerness=branches if centerness else None)
    assignment = SimpleNamespace(
        labels=labels,
        valid=[x >= 0 for x in labels],
        positives=[(x >= 0) & (x < K) for x in labels],
        gt_boxes=[boxes[0], boxes[1, :0], boxes[2]],
        num_classes=K,
    )
    return SimpleNamespace(anchors=anchors), teacher, assignment


def indices():
    """(level, image, anchor, row, column) of every location."""
    for level, (h, w) in enumerate(SIZES):
        for place in torch.cartesian_prod(torch.arange(N), torch.arange(A), torch.arange(h), torch.arange(w)).tolist():
            yield level, *place


def quality(teacher, level, n, a, i, j, centerness):
    score = max(teacher.logits[level][n, a, k, i, j].sigmoid().item() for k in range(K))
    if not centerness or teacher.centerness is None:
        return score
    return (score * teacher.centerness[level][n, a, i, j].sigmoid().item()) ** 0.5


def check(region, assignment, expected):
    """``expected(level, n, a, i, j)`` is one location's weight."""
    assert len(region) == len(SIZES)
    for weights, labels in zip(region, assignment.labels, strict=True):
        assert weights.shape == labels.shape and weights.dtype == torch.float32 and not weights.requires_grad
    for level, *place in indices():
        assert region[level][tuple(place)].item() == pytest.approx(expected(level, *place), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("centerness", [True, False])
@pytest.mark.parametrize("topk", [1, 7, 1000])
def test_top_quality_of_a_batch(topk, centerness, branch):
    source, teacher, assignment = scene(branch)
    region = REGION_REGISTRY.get("top_quality")(source, teacher, assignment, topk=topk, centerness=centerness)
    kept = set()
    for n in range(N):
        labelled = [x for x in indices() if x[1] == n and assignment.labels[x[0]][x[1:]] >= 0]
        kept.update(sorted(labelled, key=lambda x: -quality(teacher, *x, centerness))[:topk])
    assert len(kept) == min(topk * N, sum((x >= 0).sum().item() for x in assignment.labels))
    check(region, assignment, lambda *x: quality(teacher, *x, centerness) if x in kept else 0)


def test_top_quality_takes_a_hundred_without_centerness():
    logits = torch.randn(1, 1, K, 12, 13)
    teacher = SimpleNamespace(logits=[logits], class_dim=2, centerness=[torch.randn(1, 1, 12, 13)])
    labels = SimpleNamespace(labels=[torch.zeros(1, 1, 12, 13, dtype=torch.int64)])
    (region,) = REGION_REGISTRY.get("top_quality")(None, teacher, labels)
    scores = logits.sigmoid().amax(2)
    assert torch.equal(region, scores * (scores > scores.flatten().sort().values[-101]))


def test_top_quality_of_little():
    quality = torch.tensor([[0.5, 0, 0.25, 0], [0, 0, 0, 0]])
    assert torch.equal(top_quality_region(quality, topk=3), quality)
    assert top_quality_region(quality, topk=1).tolist() == [[0.5, 0, 0, 0], [0, 0, 0, 0]]
    assert top_quality_region(torch.zeros(2, 0)).shape == (2, 0)


BAND = {"gamma": 0.1, "metric": "diou", "topk": 4}


@pytest.mark.parametrize(
    "options",
    [{}, {"gain": 0.5, "centerness": True}, {"weighting": "mask"}, {"gain": 1, **BAND}, {"metric": "diou"}],
)
def test_main_and_valuable_of_a_batch(options):
    source, teacher, assignment = scene()
    region = REGION_REGISTRY.get("main_and_valuable")(source, teacher, assignment, **options)
    mask, gain = options.get("weighting") == "mask", options.get("gain", 0.25)
    bands = []
    for n, boxes in enumerate(assignment.gt_boxes):
        anchors = [x.movedim(0, 2).flatten(0, 2) for x in source.anchors]
        valid = torch.cat([x[n].movedim(0, 2).flatten() for x in assignment.valid])
        band = {key: options[key] for key in BAND if key in options}
        band = valuable_localization_region(
            anchors, boxes, valid=valid, weighting="mask" if mask else "iou", **band
        ).split([h * w * A for h, w in SIZES])
        bands.append([x.view(h, w, A) for x, (h, w) in zip(band, SIZES, strict=True)])
    counts = {"positive": 0, "band": 0, "both": 0}

    def expected(level, n, a, i, j):
        band = bands[n][level][i, j, a].item()
        positive = assignment.positives[level][n, a, i, j].item()
        counts["both" if positive and band else "positive" if positive else "band"] += positive or band > 0
        if not positive:
            return gain * band
        return 1 if mask else quality(teacher, level, n, a, i, j, options.get("centerness", False))

    check(region, assignment, expected)
    assert min(counts.values()) > 0  # each case stood somewhere


def test_a_positive_in_the_band_counts_once():
    positives = torch.tensor([True, True, False, False])
    valuable, quality = torch.tensor([0.6, 0, 0.6, 0]), torch.tensor([0.8, 0.7, 0.9, 0.9])
    region = main_and_valuable_region(positives, valuable, quality=quality)
    torch.testing.assert_close(region, torch.tensor([0.8, 0.7, 0.15, 0]))
    torch.testing.assert_close(main_and_valuable_region(positives, valuable), torch.tensor([1, 1, 0.15, 0]))
    assert main_and_valuable_region(positives, valuable, gain=0).tolist() == [1, 1, 0, 0]


def test_everywhere_is_everywhere():
    source, teacher, assignment = scene()
    assert any((labels == -1).any() for labels in assignment.labels)
    check(REGION_REGISTRY.get("everywhere")(source, teacher, assignment), assignment, lambda *_: 1)


def test_without_objects():
    source, teacher, assignment = scene()
    assignment.labels = [torch.full_like(x, K) for x in assignment.labels]
    assignment.valid = [x >= 0 for x in assignment.labels]
    assignment.positives = [torch.zeros_like(x) for x in assignment.valid]
    assignment.gt_boxes = [torch.zeros(0, 4)] * N
    regions = {
        name: REGION_REGISTRY.get(name)(source, teacher, assignment) for name in ("top_quality", "main_and_valuable")
    }
    assert not any(x.any() for x in regions["main_and_valuable"])
    assert all(x.all() for x in regions["top_quality"])  # fewer than a hundred


@pytest.mark.parametrize(
    "name, option, values, expected",
    [
        ("top_quality", "topk", [0, 2.5, True, "100"], "a whole number of at least 1"),
        ("top_quality", "centerness", [1, "true", None], "true or false"),
        ("main_and_valuable", "gain", [-0.1, float("nan"), float("inf"), True, "0.25"], "a finite number >= 0"),
        ("main_and_valuable", "centerness", [0], "true or false"),
        ("main_and_valuable", "weighting", ["iou", None], "one of teacher_quality, mask"),
        ("main_and_valuable", "gamma", [1, "0.25"], r"a number in \[0, 1\)"),
        ("main_and_valuable", "metric", ["iou"], "one of anchor_iof, diou"),
        ("main_and_valuable", "topk", [1, 9.0], "a whole number of at least 2"),
    ],
)
def test_options(name, option, values, expected):
    region = REGION_REGISTRY.get(name)
    assert inspect.signature(region).parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
    for value in values:
        message = rf"Option {option} of region '{name}' is .*, expected {expected}: change region\.{option} "
        with pytest.raises(ValueError, match=message):
            region(*scene(), **{option: value})
