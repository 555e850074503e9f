"""TID's scores, of detectors small enough to know the answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d2kd import structures
from d2kd.regions import atss, task_scores
from d2kd.regions.task_integration import task_integration
from d2kd.regions.task_scores import ImportanceScore, cell_scores, iou_thresholds_of, nearest_object
from tests.regions.task_scenes import assert_equal_areas, iou, scene


def one_image(boxes, logits, gt_boxes, gt_classes, *, shape=None, centerness=None):
    """One level, one image, of ``shape`` (A, H, W), by default all locations in a row; K from the logits."""
    boxes, logits = torch.tensor(boxes, dtype=torch.float32), torch.tensor(logits, dtype=torch.float32)
    a, h, w = shape or (1, 1, len(boxes))
    output = SimpleNamespace(
        boxes=[boxes.view(1, a, h, w, 4)],
        logits=[logits.view(a, h, w, -1).movedim(-1, 1)[None].contiguous()],
        class_dim=2,
        centerness=None if centerness is None else [torch.tensor(centerness).view(1, a, h, w)],
        anchors=[boxes.view(a, h, w, 4)],
    )
    assignment = SimpleNamespace(
        valid=[torch.ones(1, a, h, w, dtype=torch.bool)],
        positives=[torch.zeros(1, a, h, w, dtype=torch.bool)],
        gt_boxes=[torch.tensor(gt_boxes, dtype=torch.float32).view(-1, 4)],
        gt_classes=[torch.tensor(gt_classes, dtype=torch.int64)],
        num_classes=output.logits[0].shape[2],
        iou_thresholds=None,
    )
    return output, assignment


def scores_of(output, assignment, rule=None):
    rule = rule or ImportanceScore()
    return cell_scores(output, assignment, rule, iou_thresholds_of(rule, output, assignment))[0][0]


# Of the object (0, 0, 10, 10): IoU = height / 10.
OBJECT = [0.0, 0, 10, 10]


def of_iou(share):
    return [0.0, 0, 10, 10 * share]


def test_the_table_on_a_map_of_two_by_two():
    hit, unsure, miss = [0.0, -9], [-2.0, -9], [-1.0, 5]  # of class 0: p = 0.5, 0.12, 0.27 and the other is better
    output, assignment = one_image(
        [of_iou(1.0), of_iou(0.45), of_iou(0.2), of_iou(0.9)], [hit, unsure, hit, miss], [OBJECT], [0], shape=(1, 2, 2)
    )
    assert scores_of(output, assignment).tolist() == pytest.approx([2 * 2, 1.5 * 1.5, 0.4 * 2, 2 * 0.4])


@pytest.mark.parametrize("thresholds, expected", [
    ("matcher", {0.39: 0.4, 0.4: 0.4, 0.41: 1.5, 0.49: 1.5, 0.5: 2, 0.51: 2}),
    ((0.5, 0.5), {0.49: 0.4, 0.5: 2, 0.51: 2}),
    ((0.0, 0.75), {0.01: 1.5, 0.74: 1.5, 0.75: 2}),
    ((0.2, 1.0), {0.2: 0.4, 0.99: 1.5, 1.0: 2}),
])  # fmt: skip
def test_boundaries_of_the_localisation(thresholds, expected):
    output, assignment = one_image([of_iou(x) for x in expected], [[0.0]] * len(expected), [OBJECT], [0])
    found = scores_of(output, assignment, ImportanceScore(iou_thresholds=thresholds, combine="reg"))
    assert found.tolist() == pytest.approx(list(expected.values()))


@pytest.mark.parametrize("thresholds, expected", [
    ((0.05, 0.5), {-3.0: 0.4, -2.9: 1.5, -0.001: 1.5, 0.0: 2}),  # sigma(0) is 0.5 exactly
    ((0.5, 0.75), {-0.001: 0.4, 0.0: 1.5, 1.09: 1.5, 1.1: 2}),
    ((0.0, 1.0), {-50.0: 1.5, 50.0: 2}),
])  # fmt: skip
def test_boundaries_of_the_classification(thresholds, expected):
    output, assignment = one_image([OBJECT] * len(expected), [[x, -60] for x in expected], [OBJECT], [0])
    found = scores_of(output, assignment, ImportanceScore(cls_thresholds=thresholds, combine="cls"))
    assert found.tolist() == pytest.approx(list(expected.values()))


def test_a_hit_is_the_objects_class_being_best_and_a_tie_is_one():
    logits = [[3.0, 2], [2, 3], [3, 3], [1, 1]]
    output, assignment = one_image([OBJECT] * 4, logits, [OBJECT], [0])
    assert scores_of(output, assignment, ImportanceScore(combine="cls")).tolist() == pytest.approx([2, 0.4, 2, 2])
    # "hit" does not ask how probable it is
    output, assignment = one_image([OBJECT] * 2, [[-6.0, -7], [-7, -6]], [OBJECT], [0])
    assert scores_of(output, assignment, ImportanceScore(combine="cls")).tolist() == pytest.approx([0.4, 0.4])
    hits = scores_of(output, assignment, ImportanceScore(combine="cls", cls_mode="hit"))
    assert hits.tolist() == pytest.approx([2, 0.4])


def test_products_of_the_default_tables_are_six():
    found = set()
    for seed in range(20):
        source, teacher, assignment = scene(1, seed=seed)
        for output in (source, teacher):
            found |= {round(x, 4) for n in (0, 2) for x in _valid_scores(output, assignment, n)}
    assert found == {4, 3, 2.25, 0.8, 0.6, 0.16}


def _valid_scores(output, assignment, n):
    rule = ImportanceScore()
    scores = cell_scores(output, assignment, rule, iou_thresholds_of(rule, output, assignment))[0][n]
    valid = torch.cat([x[n].any(0).flatten() for x in assignment.valid])
    assert not scores[~valid].any()
    return scores[valid].tolist()


def test_of_several_anchors_the_best_product_counts():
    """A good box with the wrong class and a bad box with the right one: 0.8, not 4."""
    right, wrong = [2.0, -2], [-2.0, 2]
    output, assignment = one_image([OBJECT, of_iou(0.1)], [wrong, right], [OBJECT], [0], shape=(2, 1, 1))
    assert scores_of(output, assignment).tolist() == pytest.approx([0.8])
    boxes = [OBJECT, of_iou(0.45), of_iou(0.1)] * 3
    output, assignment = one_image(boxes, [wrong] * 4 + [right] + [wrong] * 4, [OBJECT], [0], shape=(9, 1, 1))
    assert scores_of(output, assignment).tolist() == pytest.approx([3])


def test_the_continuous_score():
    output, assignment = one_image([of_iou(0.6), of_iou(0.9)], [[0.0, 5], [1, -5]], [OBJECT], [0])
    p = torch.tensor([0.0, 1]).sigmoid()
    overlap = torch.tensor([0.6, 0.9])
    for alpha in (0.0, 0.3, 1.0):
        rule = ImportanceScore(score="continuous", alpha=alpha)
        torch.testing.assert_close(scores_of(output, assignment, rule), p ** (1 - alpha) * overlap**alpha)
    rule = ImportanceScore(score="continuous", cls_mode="hit", alpha=0.3)
    torch.testing.assert_close(scores_of(output, assignment, rule), torch.tensor([0, 0.9**0.3]))
    assert rule.top == 1


def test_centerness_counts_where_a_detector_predicts_it():
    arguments = [OBJECT] * 2, [[1.0], [3]], [OBJECT], [0]
    rule = ImportanceScore(centerness=True, combine="cls", score="continuous")
    with_it, assignment = one_image(*arguments, centerness=[0.5, -2.0])
    expected = (torch.tensor([1.0, 3]).sigmoid() * torch.tensor([0.5, -2]).sigmoid()).sqrt()
    torch.testing.assert_close(scores_of(with_it, assignment, rule), expected)
    without, _ = one_image(*arguments)
    torch.testing.assert_close(scores_of(without, assignment, rule), torch.tensor([1.0, 3]).sigmoid())


def test_the_matchers_own_thresholds_are_read():
    output, assignment = one_image([of_iou(x) for x in (0.45, 0.55, 0.65)], [[0.0]] * 3, [OBJECT], [0])
    rule = ImportanceScore(combine="reg")
    assert scores_of(output, assignment, rule).tolist() == pytest.approx([1.5, 2, 2])
    assignment.iou_thresholds = (0.5, 0.6)
    assert scores_of(output, assignment, rule).tolist() == pytest.approx([0.4, 1.5, 2])
    assert scores_of(output, assignment, ImportanceScore(combine="reg", iou_thresholds=(0.4, 0.5)))[0] == 1.5


def test_a_box_that_meets_no_object_is_about_none():
    """Whatever its class, and whichever object comes first."""
    far = [50.0, 50, 60, 60]
    output, assignment = one_image([far, far], [[5.0, -5], [-5, 5]], [OBJECT, [0, 20, 10, 30]], [0, 1])
    for rule, lowest in (
        (ImportanceScore(), 0.16),
        (ImportanceScore(cls_mode="hit"), 0.16),
        (ImportanceScore(cls_thresholds=(0, 0)), 0.16),
        (ImportanceScore(score="continuous"), 0),
        (ImportanceScore(score="continuous", cls_mode="hit", combine="cls"), 0),
    ):
        assert scores_of(output, assignment, rule).tolist() == pytest.approx([lowest] * 2)


def test_nearest_object():
    generator = torch.Generator().manual_seed(1)
    boxes, objects = (torch.rand(n, 4, generator=generator) * 20 for n in (200, 9))
    boxes[:, 2:] += 10
    objects[:, 2:] += 10
    objects[4] = objects[2]  # of equals the first
    boxes[0] = torch.tensor([90.0, 90, 95, 95])
    overlap, index = nearest_object(boxes, objects)
    table = np.array([[iou(b, o) for o in objects.tolist()] for b in boxes.tolist()])
    np.testing.assert_allclose(overlap.numpy(), table.max(1), rtol=1e-5, atol=1e-7)
    assert index.tolist() == [-1 if row.max() == 0 else int(row.argmax()) for row in table]
    assert index[0] == -1 and (index == 2).any()


@pytest.mark.parametrize("pairs", [1, 200, 450, 10**6])
def test_objects_are_looked_at_in_parts(monkeypatch, pairs):
    """No table of all pairs: at most ``pairs`` numbers, or one object's."""
    batch = scene(3, objects=(7, 0, 5))
    expected = task_integration(*batch, iou_thresholds="atss")
    seen = []
    monkeypatch.setattr(atss, "MAX_PAIRS", pairs)
    monkeypatch.setattr(task_scores, "iou", lambda a, b: seen.append(structures.iou(a, b)) or seen[-1])
    found = task_integration(*batch, iou_thresholds="atss")
    assert_equal_areas(found, expected)
    locations = sum(x[0].numel() for x in batch[2].valid)
    assert max(x.numel() for x in seen) <= max(pairs, locations)
    assert len(seen) == 2 * sum(-(-g // max(1, pairs // locations)) for g in (7, 5))
