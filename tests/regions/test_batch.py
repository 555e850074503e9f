"""Registered regions of anchors and objects: each image by itself, in the layout of its maps, and their options."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from d2kd.regions import (
    REGION_REGISTRY,
    fine_grained_region,
    inside_box_region,
)
from tests.assignment_scenes import band_of_image

# N images, A anchors a cell and (H, W) of each level; K classes
N, A, K = 3, 2, 4
SIZES = [(5, 6), (2, 3)]


def batch():
    """Source, assignment, and the same flat: anchors, valid and positive locations and scores in (H, W, A) order."""
    generator = torch.Generator().manual_seed(3)
    anchors, maps = [], []
    for (h, w), stride in zip(SIZES, (8, 16), strict=True):
        y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
        half = stride * (2 + torch.rand(A, h, w, 2, generator=generator) * 2)
        center = torch.stack([x, y], dim=-1) + torch.rand(A, h, w, 2, generator=generator)
        anchors.append(torch.cat([center - half, center + half], dim=-1))
        maps.append(
            (
                torch.randn(N, A, K, h, w, generator=generator).requires_grad_(),
                torch.rand(N, A, h, w, generator=generator) > 0.2,
                torch.rand(N, A, h, w, generator=generator) > 0.7,
            )
        )
    logits, valid, positives = map(list, zip(*maps, strict=True))
    corners = 25 * torch.rand(N, 4, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(N, 4, 2, generator=generator)], dim=-1)
    source = SimpleNamespace(logits=logits, class_dim=2, anchors=anchors)
    assignment = SimpleNamespace(
        labels=[torch.zeros_like(x, dtype=torch.int64) for x in valid],
        valid=valid,
        positives=positives,
        gt_boxes=[boxes[0], boxes[1, :0], boxes[2]],
        num_classes=K,
    )
    return source, assignment


def flat(maps, image):
    """Location by location, as labels are ordered: level, row, column, anchor."""
    return torch.stack(
        [x[image, a, i, j] for x in maps for i in range(x.shape[2]) for j in range(x.shape[3]) for a in range(A)]
    )


def level_anchors(source):
    return [
        torch.stack([x[a, i, j] for i in range(x.shape[1]) for j in range(x.shape[2]) for a in range(A)])
        for x in source.anchors
    ]


def check_images(region, source, assignment, expected):
    """``expected(image, anchors per level, boxes, valid, positives)`` is the flat region of an image."""
    for weights, like in zip(region, assignment.valid, strict=True):
        assert weights.shape == like.shape and weights.dtype == torch.float32 and not weights.requires_grad
        assert not weights[~like].any()
    for n, boxes in enumerate(assignment.gt_boxes):
        want = expected(n, level_anchors(source), boxes, flat(assignment.valid, n), flat(assignment.positives, n))
        torch.testing.assert_close(flat(region, n), want)
        assert want.any() == (len(boxes) > 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(gamma=0.1, metric="diou"),
        dict(weighting="mask", topk=4),
        dict(exclude_positives=True),
    ],
)
def test_valuable_localization_of_a_batch(options):
    source, assignment = batch()
    region = REGION_REGISTRY.get("valuable_localization")(source, None, assignment, **options)

    def expected(_, anchors, boxes, valid, positives):
        left = {name: value for name, value in options.items() if name != "exclude_positives"}
        excluded = positives if "exclude_positives" in options else None
        return band_of_image(anchors, boxes, valid=valid, excluded=excluded, **left)

    check_images(region, source, assignment, expected)


@pytest.mark.parametrize("exclude_positives", [False, True])
@pytest.mark.parametrize("weighting", ["mask", "student_score"])
def test_inside_box_of_a_batch(weighting, exclude_positives):
    source, assignment = batch()
    options = dict(weighting=weighting, exclude_positives=exclude_positives)
    region = REGION_REGISTRY.get("inside_box")(source, None, assignment, **options)

    def expected(image, anchors, boxes, valid, positives):
        inside = inside_box_region(torch.cat(anchors), boxes, valid=valid)
        if weighting == "student_score":
            inside = inside * flat([x.detach().sigmoid().amax(2) for x in source.logits], image)
        return inside * ~positives if exclude_positives else inside

    check_images(region, source, assignment, expected)


@pytest.mark.parametrize("options", [{}, dict(threshold=0.8)])
def test_fine_grained_of_a_batch(options):
    source, assignment = batch()
    region = REGION_REGISTRY.get("fine_grained")(source, None, assignment, **options)

    def expected(_, anchors, boxes, valid, positives):
        return fine_grained_region(torch.cat(anchors), boxes, valid=valid, **options)

    check_images(region, source, assignment, expected)


@pytest.mark.parametrize(
    "name, option, values, expected",
    [
        ("valuable_localization", "gamma", [1, -0.1, 1.5, "0.25", float("nan"), True], r"a number in \[0, 1\)"),
        ("valuable_localization", "metric", ["iou", None], "one of anchor_iof, diou"),
        ("valuable_localization", "weighting", ["student_score"], "one of iou, mask"),
        ("valuable_localization", "exclude_positives", ["false", 1, None], "true or false"),
        ("valuable_localization", "topk", [1, 9.0, "9"], "a whole number of at least 2"),
        ("inside_box", "exclude_positives", [0], "true or false"),
        ("inside_box", "weighting", ["iou"], "one of mask, student_score"),
        ("fine_grained", "threshold", [1.0, -1, "half"], r"a number in \[0, 1\)"),
    ],
)
def test_options(name, option, values, expected):
    source, assignment = batch()
    region = REGION_REGISTRY.get(name)
    assert inspect.signature(region).parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
    for value in values:
        with pytest.raises(ValueError, match=rf"^{option} is .*, expected {expected}"):
            region(source, None, assignment, **{option: value})
