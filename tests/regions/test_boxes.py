"""Regions made of anchors and objects: against the reference's numbers, against plain Python."""

import pytest
import torch

import d2kd.regions.atss
import d2kd.structures.boxes
from d2kd.regions import (
    central_overlap,
    fine_grained_region,
    inside_box_region,
    valuable_localization_region,
)
from tests.assignment_scenes import (
    CASES,
    band_of_image,
    golden_case,
    oracle_image,
    per_level,
    random_scene,
    slow_assign,
    slow_center,
    slow_intersection,
    slow_iou,
    slow_threshold,
)

WITH_OBJECTS = [name for name in CASES if name != "s_no_gt"]


def indices(region):
    return region.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_golden_valuable_localization(name):
    anchors, boxes, valid, case = golden_case(name)
    weights = band_of_image(anchors, boxes, topk=int(case["topk"]), valid=valid)
    assert weights.dtype == torch.float32
    assert indices(weights) == case["vlr_inds"].tolist()
    expected = torch.from_numpy(case["vlr_weight"])
    torch.testing.assert_close(weights[weights > 0], expected, rtol=1e-5, atol=1e-6)
    mask = band_of_image(anchors, boxes, topk=int(case["topk"]), valid=valid, weighting="mask")
    assert torch.equal(mask, (weights > 0).float())


@pytest.mark.parametrize("name", WITH_OBJECTS)
def test_golden_imitation_regions(name):
    anchors, boxes, valid, case = golden_case(name)
    anchors = torch.cat(anchors)
    fine_grained = fine_grained_region(anchors, boxes, valid=valid)
    assert indices(fine_grained) == case["im_finegrained_inds"].tolist()
    inside = inside_box_region(anchors, boxes, valid=valid)
    assert indices(inside) == case["im_fitnet_inds"].tolist()
    assert fine_grained.max() == inside.max() == 1


@pytest.mark.parametrize("index", [0, 1])
def test_closed_form_batch(index):
    anchors, boxes, valid, counts = oracle_image(index)
    weights = band_of_image(anchors, boxes, valid=valid)
    assert per_level(weights, anchors) == counts["vlr_per_level"]
    torch.testing.assert_close(weights.sum().item(), counts["vlr_sum"], rtol=1e-6, atol=0)
    true_diou = band_of_image(anchors, boxes, valid=valid, metric="diou")
    assert per_level(true_diou, anchors) == counts["vlr_true_diou_per_level"]

    positives = d2kd.regions.atss.assign(anchors, boxes, valid=valid) >= 0
    assert int((weights[positives] > 0).sum()) == counts["vlr_and_pos"] > 0
    disjoint = band_of_image(anchors, boxes, valid=valid, excluded=positives)
    assert torch.equal(disjoint, weights * ~positives)


def test_overlap_is_that_of_the_anchor_unless_told():
    a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 5, 25, 15])
    # 25 / 100 - 125 / 850, 25 / 200 - 125 / 850 and 25 / 275 - 125 / 850
    assert central_overlap(a, b).item() == pytest.approx(0.10294117, abs=1e-7)
    assert central_overlap(b, a).item() == pytest.approx(-0.02205883, abs=1e-7)
    for pair in ((a, b), (b, a)):
        assert central_overlap(*pair, metric="diou").item() == pytest.approx(0.09090909 - 0.14705882, abs=1e-7)
    for metric in ("anchor_iof", "diou"):
        assert central_overlap(a, a, metric=metric) == 1
    with pytest.raises(ValueError, match="^metric is 'iou', expected one of"):
        central_overlap(a, b, metric="iou")


def slow_region(anchors, boxes, valid, *, gamma, metric, weighting):
    levels = [level.tolist() for level in anchors]
    flat = [anchor for level in levels for anchor in level]
    weights = [0.0] * len(flat)
    for box in boxes.tolist():
        threshold = slow_threshold(levels, valid.tolist(), box, 9)
        for n, anchor in enumerate(flat):
            area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
            overlap = slow_intersection(anchor, box) / area if metric == "anchor_iof" else slow_iou(anchor, box)
            (ax, ay), (bx, by) = slow_center(anchor), slow_center(box)
            width = max(anchor[2], box[2]) - min(anchor[0], box[0])
            height = max(anchor[3], box[3]) - min(anchor[1], box[1])
            overlap -= ((ax - bx) ** 2 + (ay - by) ** 2) / (width**2 + height**2)
            if valid[n] and gamma * threshold <= overlap < threshold:
                weights[n] = max(weights[n], slow_iou(anchor, box) if weighting == "iou" else 1.0)
    return torch.tensor(weights)


@pytest.mark.parametrize("gamma", [0, 0.25, 0.8])
@pytest.mark.parametrize("metric", ["anchor_iof", "diou"])
@pytest.mark.parametrize("weighting", ["iou", "mask"])
@pytest.mark.parametrize("seed", [0, 1])
def test_valuable_localization_in_plain_python(seed, weighting, metric, gamma):
    scene = random_scene(seed)
    options = dict(gamma=gamma, metric=metric, weighting=weighting)
    anchors, boxes, valid = scene
    weights = band_of_image(anchors, boxes, valid=valid, **options)
    torch.testing.assert_close(weights, slow_region(*scene, **options), rtol=1e-5, atol=1e-6)
    assert 0 < weights.count_nonzero() < valid.sum()


@pytest.mark.parametrize("seed", range(4))
def test_imitation_regions_in_plain_python(seed):
    anchors, boxes, valid = random_scene(seed)
    anchors = torch.cat(anchors)
    for threshold in (0, 0.5, 0.9):
        fine_grained = torch.zeros(len(anchors))
        for box in boxes.tolist():
            overlaps = [slow_iou(anchor, box) * ok for anchor, ok in zip(anchors.tolist(), valid.tolist(), strict=True)]
            fine_grained[[n for n, x in enumerate(overlaps) if x > threshold * max(overlaps)]] = 1
        assert torch.equal(fine_grained_region(anchors, boxes, threshold=threshold, valid=valid), fine_grained)
    centers = [slow_center(anchor) for anchor in anchors.tolist()]
    inside = [any(b[0] < x < b[2] and b[1] < y < b[3] for b in boxes.tolist()) for x, y in centers]
    excluded = torch.rand(len(anchors)) > 0.5
    expected = torch.tensor(inside) * valid
    assert torch.equal(inside_box_region(anchors, boxes, valid=valid), expected.float())
    region = inside_box_region(anchors, boxes, valid=valid, excluded=excluded)
    assert torch.equal(region, (expected * ~excluded).float())


def test_a_centre_on_an_edge_is_not_inside():
    anchors = torch.tensor([[0.0, 0, 8, 8], [2.0, 0, 10, 8]])  # centres (4, 4) and (6, 4)
    assert inside_box_region(anchors, torch.tensor([[4.0, 0, 20, 20]])).tolist() == [0, 1]
    assert inside_box_region(anchors, torch.tensor([[0.0, 0, 6, 20]])).tolist() == [1, 0]
    assert inside_box_region(anchors, torch.tensor([[0.0, 4, 20, 20]])).tolist() == [0, 0]


def test_the_band_has_its_lower_end_and_not_its_upper():
    """Concentric anchors inside the object: D is 1 and IoU their share of its area."""
    box = torch.tensor([[0.0, 0, 64, 64]])

    def region(*sides, **options):
        anchors = torch.tensor([[32 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2] for side in sides])
        return band_of_image([anchors], box, **options)

    # one candidate, so the threshold is its IoU
    assert region(64).tolist() == [0]  # D = 1, not below a threshold of 1
    assert region(128, gamma=0.999).tolist() == [0]  # D = IoU = 1/4, equal to the threshold: above the band
    # IoUs 1/4 and 1/4: a deviation of 0, and still at the upper end
    assert region(128, 128).tolist() == [0, 0]
    # IoUs 1/4, 1/16: mean 5/32 + deviation 0.1326 = 0.2888
    assert region(128, 256, gamma=0.5).tolist() == [0.25, 0]
    assert region(128, 256, gamma=0.2).tolist() == [0.25, 0.0625]
    # IoUs 1/4 and 1, and the gamma at which the lower end is D = 1/4
    anchors = [torch.tensor([[-32.0, -32, 96, 96]]), box]
    threshold = d2kd.regions.atss.adaptive_thresholds(anchors, box)
    lower = (0.25 / threshold).item()
    assert torch.tensor(lower) * threshold == 0.25
    for gamma, expected in ((lower, [0.25, 1]), (lower * (1 + 1e-6), [0, 1])):
        assert band_of_image(anchors, box, gamma=gamma).tolist() == expected


@pytest.mark.parametrize("metric", ["anchor_iof", "diou"])
def test_no_objects_no_region(metric):
    anchors, _, valid = random_scene(0)
    for nothing in (torch.zeros(0, 4), torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[1e4, 1e4, 2e4, 2e4]])):
        for weighting in ("iou", "mask"):
            options = dict(gamma=0, metric=metric, weighting=weighting, valid=valid)
            assert not band_of_image(anchors, nothing, **options).any()
        assert not inside_box_region(torch.cat(anchors), nothing).any()
        assert not fine_grained_region(torch.cat(anchors), nothing).any()


def test_no_valid_anchors_no_region():
    anchors, boxes, valid = random_scene(0)
    nowhere = torch.zeros_like(valid)
    assert not band_of_image(anchors, boxes, valid=nowhere).any()
    assert not inside_box_region(torch.cat(anchors), boxes, valid=nowhere).any()
    assert not fine_grained_region(torch.cat(anchors), boxes, threshold=0, valid=nowhere).any()


@pytest.mark.parametrize("pairs", [1, 64, 200])
def test_few_objects_at_a_time_change_nothing(monkeypatch, pairs):
    anchors, boxes, valid = random_scene(8, num_gt=7)

    def regions():
        return [
            band_of_image(anchors, boxes, valid=valid),
            band_of_image(anchors, boxes, valid=valid, weighting="mask"),
            inside_box_region(torch.cat(anchors), boxes, valid=valid),
            fine_grained_region(torch.cat(anchors), boxes, valid=valid),
        ]

    expected = regions()
    monkeypatch.setattr(d2kd.structures.boxes, "MAX_PAIRS", pairs)
    for region, same in zip(regions(), expected, strict=True):
        assert region.any() and torch.equal(region, same)


@pytest.mark.parametrize("pairs", [1, 200, 1 << 20])
@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_is_its_images_one_by_one(monkeypatch, padded, pairs):
    """An image without objects among them; chunks of objects end within an image."""
    monkeypatch.setattr(d2kd.structures.boxes, "MAX_PAIRS", pairs)
    anchors, _, valid = random_scene(8)
    boxes = [random_scene(seed, num_gt=count)[1] for seed, count in enumerate((3, 0, 4, 1))]
    valid = torch.stack([valid if padded else torch.ones_like(valid), *[torch.ones_like(valid)] * 3])
    excluded = torch.rand(valid.shape) < 0.2
    weights = valuable_localization_region(anchors, boxes, valid=valid, excluded=excluded)
    rows = zip(boxes, valid, excluded, strict=True)
    expected = [band_of_image(anchors, x, valid=known, excluded=left_out) for x, known, left_out in rows]
    assert torch.equal(weights, torch.stack(expected))
    assert weights.any(dim=1).tolist() == [True, False, True, True]
    nothing = valuable_localization_region(anchors, [boxes[1]] * 2, valid=valid[:2])
    assert nothing.shape == valid[:2].shape and not nothing.any()


def test_the_scenes_have_positives_in_the_band():
    """Else what is said of positives above would be empty."""
    anchors, boxes, valid = random_scene(1)
    matched = slow_assign([x.tolist() for x in anchors], valid.tolist(), boxes.tolist(), 9)
    weights = band_of_image(anchors, boxes, valid=valid)
    assert (weights[torch.tensor(matched) >= 0] > 0).any()
