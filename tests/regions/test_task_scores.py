"""TID's scores, of detectors small enough to know the answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d2kd.regions import task_scores
from d2kd.regions.task_integration import task_integration
from d2kd.regions.task_scores import cell_scores, nearest_object
from d2kd.structures import boxes as box_arithmetic
from tests.regions.task_scenes import assert_equal_regions, iou, scene


def one_image(boxes, logits, gt_boxes, gt_classes, *, shape=None):
    """One level, one image, of ``shape`` (A, H, W), by default all locations in a row; K from the logits."""
    boxes, logits = torch.tensor(boxes, dtype=torch.float32), torch.tensor(logits, dtype=torch.float32)
    a, h, w = shape or (1, 1, len(boxes))
    output = SimpleNamespace(
        boxes=[boxes.view(1, a, h, w, 4)],
        logits=[logits.view(a, h, w, -1).movedim(-1, 1)[None].contiguous()],
        class_dim=2,
    )
    assignment = SimpleNamespace(
        valid=[torch.ones(1, a, h, w, dtype=torch.bool)],
        gt_boxes=[torch.tensor(gt_boxes, dtype=torch.float32).view(-1, 4)],
        gt_classes=[torch.tensor(gt_classes, dtype=torch.int64)],
        iou_thresholds=None,
    )
    return output, assignment


# Of the object (0, 0, 10, 10): IoU = height / 10.
OBJECT = [0.0, 0, 10, 10]


def of_iou(share):
    return [0.0, 0, 10, 10 * share]


def test_the_table_on_a_map_of_two_by_two():
    hit, unsure, miss = [0.0, -9], [-2.0, -9], [-1.0, 5]  # of class 0: p = 0.5, 0.12, 0.27 and the other is better
    batch = one_image(
        [of_iou(1.0), of_iou(0.45), of_iou(0.2), of_iou(0.9)], [hit, unsure, hit, miss], [OBJECT], [0], shape=(1, 2, 2)
    )
    scores = {"product": [2 * 2, 1.5 * 1.5, 0.4 * 2, 2 * 0.4], "sum": [4, 3, 2.4, 2.4],
              "cls": [2, 1.5, 2, 0.4], "reg": [2, 1.5, 0.4, 2]}  # fmt: skip
    assert cell_scores(*batch)[0].tolist() == pytest.approx(scores["product"])
    for combine, expected in scores.items():
        assert cell_scores(*batch, combine=combine)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("thresholds, expected", [
    (None, {0.39: 0.4, 0.4: 0.4, 0.41: 1.5, 0.49: 1.5, 0.5: 2, 0.51: 2}),
    ((0.5, 0.5), {0.49: 0.4, 0.5: 2, 0.51: 2}),
    ((0.0, 0.75), {0.01: 1.5, 0.74: 1.5, 0.75: 2}),
    ((0.2, 1.0), {0.2: 0.4, 0.99: 1.5, 1.0: 2}),
])  # fmt: skip
def test_boundaries_of_the_localisation_are_the_matchers(thresholds, expected):
    output, assignment = one_image([of_iou(x) for x in expected], [[0.0]] * len(expected), [OBJECT], [0])
    assignment.iou_thresholds = thresholds
    assert cell_scores(output, assignment, combine="reg")[0].tolist() == pytest.approx(list(expected.values()))


def test_boundaries_of_the_classification():
    expected = {-3.0: 0.4, -2.9: 1.5, -0.001: 1.5, 0.0: 2}  # sigma(0) is 0.5 exactly
    batch = one_image([OBJECT] * len(expected), [[x, -60] for x in expected], [OBJECT], [0])
    assert cell_scores(*batch, combine="cls")[0].tolist() == pytest.approx(list(expected.values()))


def test_a_hit_is_the_objects_class_being_best_and_a_tie_is_one():
    batch = one_image([OBJECT] * 4, [[3.0, 2], [2, 3], [3, 3], [1, 1]], [OBJECT], [0])
    assert cell_scores(*batch, combine="cls")[0].tolist() == pytest.approx([2, 0.4, 2, 2])


def test_products_of_the_table_are_six():
    found = set()
    for seed in range(20):
        source, teacher, assignment = scene(1, seed=seed)
        valid = torch.cat([x.any(1).flatten(1) for x in assignment.valid], dim=1)
        for output in (source, teacher):
            scores = cell_scores(output, assignment)
            assert not scores[~valid].any()
            found |= {round(x, 4) for x in scores[valid].tolist()}
    assert found == {4, 3, 2.25, 0.8, 0.6, 0.16}


def test_of_several_anchors_the_best_product_counts():
    """A good box with the wrong class and a bad box with the right one: 0.8, not 4."""
    right, wrong = [2.0, -2], [-2.0, 2]
    batch = one_image([OBJECT, of_iou(0.1)], [wrong, right], [OBJECT], [0], shape=(2, 1, 1))
    assert cell_scores(*batch)[0].tolist() == pytest.approx([0.8])
    boxes = [OBJECT, of_iou(0.45), of_iou(0.1)] * 3
    batch = one_image(boxes, [wrong] * 4 + [right] + [wrong] * 4, [OBJECT], [0], shape=(9, 1, 1))
    assert cell_scores(*batch)[0].tolist() == pytest.approx([3])


def test_a_box_that_meets_no_object_is_about_none():
    """Whatever its class and the matcher's thresholds, and whichever object comes first."""
    far = [50.0, 50, 60, 60]
    output, assignment = one_image([far, far], [[5.0, -5], [-5, 5]], [OBJECT, [0, 20, 10, 30]], [0, 1])
    for assignment.iou_thresholds in (None, (0.0, 0.0)):
        assert cell_scores(output, assignment)[0].tolist() == pytest.approx([0.16] * 2)


def test_nearest_object():
    generator = torch.Generator().manual_seed(1)
    boxes, objects = (torch.rand(n, 4, generator=generator) * 20 for n in (200, 9))
    boxes[:, 2:] += 10
    objects[:, 2:] += 10
    objects[4] = objects[2]  # of equals the first
    boxes[0] = torch.tensor([90.0, 90, 95, 95])
    overlaps, indices = nearest_object(torch.stack([boxes, boxes]), [objects[:0], objects])
    assert not overlaps[0].any() and (indices[0] == -1).all()
    overlap, index = overlaps[1], indices[1]
    table = np.array([[iou(b, o) for o in objects.tolist()] for b in boxes.tolist()])
    np.testing.assert_allclose(overlap.numpy(), table.max(1), rtol=1e-5, atol=1e-7)
    assert index.tolist() == [-1 if row.max() == 0 else int(row.argmax()) for row in table]
    assert index[0] == -1 and (index == 2).any()


@pytest.mark.parametrize("pairs", [1, 200, 450, 10**6])
def test_objects_are_looked_at_in_chunks(monkeypatch, pairs):
    """No table of all pairs: at most ``pairs`` numbers, or one object's."""
    batch = scene(3, objects=(7, 0, 5))
    expected = task_integration(*batch)
    seen = []
    monkeypatch.setattr(box_arithmetic, "MAX_PAIRS", pairs)
    monkeypatch.setattr(task_scores, "iou", lambda a, b: seen.append(box_arithmetic.iou(a, b)) or seen[-1])
    assert_equal_regions(task_integration(*batch), expected)
    locations = sum(x[0].numel() for x in batch[2].valid)
    assert max(x.numel() for x in seen) <= max(pairs, locations)
    assert len(seen) == 2 * sum(-(-g // max(1, pairs // locations)) for g in (7, 5))
