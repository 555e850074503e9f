"""ATSS against the reference's numbers, against plain Python, and where there is little or nothing to assign."""

import pytest
import torch

import d2kd.regions.atss
import d2kd.structures.boxes
from d2kd.regions.atss import adaptive_thresholds, assign, candidates
from d2kd.structures import intersection, iou
from tests.assignment_scenes import (
    CASES,
    golden_case,
    oracle_image,
    per_level,
    random_scene,
    slow_assign,
    slow_candidates,
    slow_threshold,
    square_anchors,
)


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    anchors, boxes, valid, case = golden_case(name)
    assert sum(map(len, anchors)) == case["num_anchors"] and valid.sum() == case["num_valid"]
    matched = assign(anchors, boxes, topk=int(case["topk"]), valid=valid)
    (positive,) = torch.nonzero(matched >= 0, as_tuple=True)
    assert matched.dtype == torch.int64
    assert positive.tolist() == case["pos_inds"].tolist()
    assert matched[positive].tolist() == case["pos_gt"].tolist()
    assert torch.from_numpy(case["gt_classes"])[matched[positive]].tolist() == case["pos_class"].tolist()
    overlaps = iou(torch.cat(anchors)[positive], boxes[matched[positive]])
    torch.testing.assert_close(overlaps, torch.from_numpy(case["pos_iou"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["s_generic", "s_padded"])
def test_the_scenes_have_the_reference_s_anchors(name):
    anchors, _, _, case = golden_case(name)
    assert torch.equal(torch.cat(anchors), torch.from_numpy(case["anchors"]))


@pytest.mark.parametrize("index", [0, 1])
def test_closed_form_batch(index):
    anchors, boxes, valid, counts = oracle_image(index)
    assert per_level(valid, anchors) == counts["num_valid_per_level"]
    matched = assign(anchors, boxes, valid=valid)
    assert per_level(matched >= 0, anchors) == counts["pos_per_level"]
    assert torch.bincount(matched[matched >= 0], minlength=len(boxes)).tolist() == counts["pos_per_gt"]
    assert torch.nonzero(matched[valid] >= 0).flatten().tolist() == counts["pos_index_in_valid"]
    thresholds = adaptive_thresholds(anchors, boxes, valid=valid)
    torch.testing.assert_close(thresholds, torch.tensor(counts["thr"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("topk", [2, 5, 9, 60])
@pytest.mark.parametrize("seed", range(6))
def test_against_plain_python(seed, topk):
    anchors, boxes, valid = random_scene(seed)
    levels, lists = [x.tolist() for x in anchors], (valid.tolist(), boxes.tolist())
    for g, found in enumerate(candidates(anchors, boxes, topk=topk, valid=valid)):
        assert found.tolist() == slow_candidates(levels, lists[0], lists[1][g], topk)
    expected = torch.tensor([slow_threshold(levels, lists[0], box, topk) for box in lists[1]])
    torch.testing.assert_close(adaptive_thresholds(anchors, boxes, topk=topk, valid=valid), expected)
    matched = assign(anchors, boxes, topk=topk, valid=valid)
    assert matched.tolist() == slow_assign(levels, *lists, topk)
    assert (matched >= 0).any()


def test_anchors_that_are_not_valid_might_as_well_be_absent():
    anchors, boxes, valid = random_scene(11)
    kept = valid.split([len(x) for x in anchors])
    without = assign([x[k] for x, k in zip(anchors, kept, strict=True)], boxes)
    matched = assign(anchors, boxes, valid=valid)
    assert torch.equal(matched[valid], without)
    assert (matched[~valid] == -1).all()
    assert not torch.equal(matched, assign(anchors, boxes))


def test_an_anchor_of_two_objects_goes_to_the_larger_iou_the_first_of_equals():
    anchors, boxes, _ = random_scene(7)
    boxes = torch.stack([boxes[0], boxes[0] + torch.tensor([2.0, -1, 3, -2]), boxes[0]])
    both = (assign(anchors, boxes[:1]) == 0) & (assign(anchors, boxes[1:2]) == 0)
    overlaps = iou(torch.cat(anchors)[both, None], boxes)
    matched = assign(anchors, boxes)
    assert torch.equal(matched[both], (overlaps[:, 0] < overlaps[:, 1]).long())
    assert matched[both].unique().tolist() == [0, 1]
    assert not (matched == 2).any()
    assert (assign(anchors, boxes.flip(0)) != 2).all()


def test_the_centre_must_be_inside_by_more_than_a_hundredth_of_a_pixel():
    anchors = [torch.tensor([[x - 32.0, -32.0, x + 32, 32] for x in (1.0, 100.0, 200.0)])]
    for left, expected in ((0.98, 0), (0.995, -1), (1.5, -1)):
        matched = assign(anchors, torch.tensor([[left, -20.0, left + 20, 20.0]]))
        assert matched.tolist() == [expected, -1, -1]


def test_a_cell_s_anchors_all_count():
    """Nine anchors a cell, as RetinaNet has: the nine nearest are those of the nearest cell."""
    sizes = torch.tensor([4.0, 8, 12, 16, 20, 24, 28, 32, 36])
    centers = torch.tensor([[8.0, 8.0], [24.0, 8.0], [40.0, 8.0]])
    anchors = torch.cat([centers[:, None] - sizes[:, None], centers[:, None] + sizes[:, None]], dim=-1).flatten(0, 1)
    box = torch.tensor([[12.0, 0.0, 35.0, 17.0]])
    assert candidates([anchors], box).sort().values.tolist() == [list(range(9, 18))]
    assert assign([anchors], box).ge(0).nonzero().min() >= 9


@pytest.mark.parametrize("pairs", [1, 90, 200])
def test_few_objects_at_a_time_change_nothing(monkeypatch, pairs):
    anchors, boxes, valid = random_scene(5, num_gt=7)
    expected = assign(anchors, boxes, valid=valid)
    monkeypatch.setattr(d2kd.structures.boxes, "MAX_PAIRS", pairs)
    assert torch.equal(assign(anchors, boxes, valid=valid), expected)


def test_no_objects():
    anchors, _, valid = random_scene(0)
    nothing = torch.zeros(0, 4)
    assert (assign(anchors, nothing, valid=valid) == -1).all()
    assert assign(anchors, nothing).shape == valid.shape
    assert adaptive_thresholds(anchors, nothing).shape == (0,)


def test_no_valid_anchors():
    anchors, boxes, valid = random_scene(0)
    nowhere = torch.zeros_like(valid)
    assert candidates(anchors, boxes, valid=nowhere).shape == (len(boxes), 0)
    assert (assign(anchors, boxes, valid=nowhere) == -1).all()
    assert adaptive_thresholds(anchors, boxes, valid=nowhere).tolist() == [0] * len(boxes)


def test_a_single_candidate_asks_for_its_own_iou():
    anchors, box = [torch.tensor([[0.0, 0, 64, 64]])], torch.tensor([[10.0, 10, 50, 60]])
    assert torch.equal(adaptive_thresholds(anchors, box), iou(anchors[0], box))
    assert assign(anchors, box).tolist() == [0]


def test_boxes_without_area_match_nothing_and_stay_finite():
    anchors = square_anchors([(6, 6), (3, 3)], [8, 16])
    boxes = torch.tensor([[8.0, 8, 8, 8], [3.0, 5, 3, 25], [20.0, 20, 4, 4], [-11.0, -9, 50, 52]])
    thresholds = adaptive_thresholds(anchors, boxes)
    assert thresholds.isfinite().all()
    assert thresholds[:3].tolist() == [0, 0, 0]
    assert assign(anchors, boxes).unique().tolist() == [-1, 3]
    degenerate = [torch.zeros(3, 4)]
    assert adaptive_thresholds(degenerate, boxes).tolist() == [0] * 4


def test_overlaps():
    a, b = torch.tensor([0.0, 0, 10, 10]), torch.tensor([5.0, 5, 25, 15])
    assert intersection(a, b) == 25
    torch.testing.assert_close(iou(a, b), torch.tensor(25 / 275))
    assert iou(a, a) == 1 and iou(a, b + 30) == 0 and iou(b[[0, 1, 0, 1]], b[[0, 1, 0, 1]]) == 0


def test_half_precision_boxes_are_read_as_fp32():
    anchors, boxes, valid = random_scene(2)
    anchors, boxes = [x.half() for x in anchors], boxes.half()
    expected = assign([x.float() for x in anchors], boxes.float(), valid=valid)
    assert torch.equal(assign(anchors, boxes, valid=valid), expected)
    assert adaptive_thresholds(anchors, boxes).dtype == torch.float32


@pytest.mark.parametrize("topk", [1, 0, -3, 9.0, True, "9"])
def test_too_few_candidates(topk):
    with pytest.raises(ValueError, match=r"topk is .*, expected a whole number of at least 2"):
        assign(*random_scene(0)[:2], topk=topk)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(gt_boxes=torch.zeros(3, 5)), r"gt_boxes has shape \(3, 5\), expected"),
        (dict(level_anchors=[torch.zeros(2, 3, 4)]), r"level_anchors\[0\] has shape \(2, 3, 4\)"),
        (dict(valid=torch.ones(3, dtype=torch.bool)), r"valid is torch.bool of shape \(3,\), expected .* \(64,\)"),
        (dict(valid=torch.ones(64)), r"valid is torch.float32 of shape \(64,\), expected torch.bool"),
    ],
)
def test_shapes(changed, message):
    anchors, boxes, _ = random_scene(0)
    with pytest.raises(ValueError, match=message):
        assign(**{**dict(level_anchors=anchors, gt_boxes=boxes), **changed})


@pytest.mark.parametrize("name", CASES)
def test_golden_on_a_device(name, device):
    """Where invalid anchors are not counted, the assignment is the same, and the host does not wait."""
    anchors, boxes, valid, case = golden_case(name)
    topk = int(case["topk"])
    there = [x.to(device.device) for x in anchors], boxes.to(device.device)
    known = valid.to(device.device)
    device.reset()
    matched = assign(*there, topk=topk, valid=known)
    thresholds = adaptive_thresholds(*there, topk=topk, valid=known)
    assert not device.waits
    assert torch.equal(matched.cpu(), assign(anchors, boxes, topk=topk, valid=valid))
    expected = adaptive_thresholds(anchors, boxes, topk=topk, valid=valid)
    torch.testing.assert_close(thresholds.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("topk", [2, 9, 60])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5])
def test_few_valid_anchors_on_a_device(kept, topk, device):
    anchors, boxes, valid = random_scene(3)
    valid &= torch.rand(len(valid), generator=torch.Generator().manual_seed(0)) < kept
    there = [x.to(device.device) for x in anchors], boxes.to(device.device)
    options = dict(topk=topk, valid=valid.to(device.device))
    found = adaptive_thresholds(*there, **options)
    expected = adaptive_thresholds(anchors, boxes, topk=topk, valid=valid)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
    matched = assign(*there, **options)
    assert torch.equal(matched.cpu(), assign(anchors, boxes, topk=topk, valid=valid))
