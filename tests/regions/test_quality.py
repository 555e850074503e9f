"""FTPD's regions: location by location, in plain Python."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from d2kd.regions import (
    REGION_REGISTRY,
    main_and_valuable_region,
)
from tests.assignment_scenes import band_of_image

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
@pytest.mark.parametrize("options", [{}, {"centerness": True}, {"gain": 0.5}, {"gain": 1, "centerness": True}])
def test_main_and_valuable_of_a_batch(options, branch):
    source, teacher, assignment = scene(branch)
    region = REGION_REGISTRY.get("main_and_valuable")(source, teacher, assignment, **options)
    bands = []
    for n, boxes in enumerate(assignment.gt_boxes):
        anchors = [x.movedim(0, 2).flatten(0, 2) for x in source.anchors]
        valid = torch.cat([x[n].movedim(0, 2).flatten() for x in assignment.valid])
        band = band_of_image(anchors, boxes, valid=valid).split([h * w * A for h, w in SIZES])
        bands.append([x.view(h, w, A) for x, (h, w) in zip(band, SIZES, strict=True)])
    counts = {"positive": 0, "band": 0, "both": 0}

    def expected(level, n, a, i, j):
        band = bands[n][level][i, j, a].item()
        positive = assignment.positives[level][n, a, i, j].item()
        counts["both" if positive and band else "positive" if positive else "band"] += positive or band > 0
        if positive:
            return quality(teacher, level, n, a, i, j, options.get("centerness", False))
        return options.get("gain", 0.25) * band

    check(region, assignment, expected)
    assert min(counts.values()) > 0  # each case stood somewhere


def test_a_positive_in_the_band_counts_once():
    positives = torch.tensor([True, True, False, False])
    valuable, quality = torch.tensor([0.6, 0, 0.6, 0]), torch.tensor([0.8, 0.7, 0.9, 0.9])
    region = main_and_valuable_region(positives, valuable, quality)
    torch.testing.assert_close(region, torch.tensor([0.8, 0.7, 0.15, 0]))
    assert not main_and_valuable_region(positives, valuable, quality, gain=0)[2:].any()
    # Also where the teacher makes less of it than the band would.
    poor = main_and_valuable_region(positives, valuable, torch.full((4,), 0.05), gain=1)
    torch.testing.assert_close(poor, torch.tensor([0.05, 0.05, 0.6, 0]))


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
    region = REGION_REGISTRY.get("main_and_valuable")(source, teacher, assignment)
    assert not any(x.any() for x in region)


@pytest.mark.parametrize(
    "option, values, expected",
    [
        ("gain", [-0.1, float("nan"), float("inf"), True, "0.25"], "a finite number >= 0"),
        ("centerness", [0, "true"], "true or false"),
    ],
)
def test_options(option, values, expected):
    region = REGION_REGISTRY.get("main_and_valuable")
    assert inspect.signature(region).parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
    for value in values:
        with pytest.raises(ValueError, match=f"^{option} is .*, expected {expected}"):
            region(*scene(), **{option: value})
