"""Detections of the student and of a file are compared one by one."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2kd.export.comparison import compare, compare_tensors


def detections(boxes, scores, classes):
    found = Instances((32, 32))
    found.pred_boxes, found.scores = Boxes(torch.tensor(boxes)), torch.tensor(scores)
    found.pred_classes = torch.tensor(classes)
    return found


BASE = ([[0.0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 30, 30]], [0.9, 0.5, 0.5], [0, 1, 1])


def test_equal_scores_may_stand_in_any_order_and_others_not():
    same = compare(detections(*BASE), detections(*([part[i] for i in (0, 2, 1)] for part in BASE)))
    assert same.same and same.box == 0 and (same.expected, same.found, same.size) == (3, 3, (32, 32))
    boxes, scores, classes = BASE
    swapped = compare(detections(*BASE), detections([boxes[1], boxes[0], boxes[2]], scores, classes))
    assert not swapped.same and swapped.box == 4.0


@pytest.mark.parametrize(
    "part, value, said",
    [
        (0, [0.0, 0, 5, 5.5], "0.5 pixels in boxes, 0 in scores, 0 of"),
        (0, [0.0, 0, 5, float("nan")], "nan pixels in boxes"),
        (1, 0.875, "0 pixels in boxes, 0.025 in scores, 0 of"),
        (1, float("nan"), "nan in scores"),
        (2, 2, "0 pixels in boxes, 0 in scores, 1 of"),
    ],
)
def test_a_difference_is_measured(part, value, said):
    parts = [list(x) for x in BASE]
    parts[part][0] = value
    comparison = compare(detections(*BASE), detections(*parts))
    assert not comparison.same and said in str(comparison)


def test_another_number_of_detections_is_a_difference():
    fewer = detections(*(part[:2] for part in BASE))
    comparison = compare(detections(*BASE), fewer)
    assert not comparison.same and "3 detections of the student, 2 of the file" in str(comparison)


def test_locations_are_compared_by_number_box_and_score():
    boxes, scores = torch.rand(2, 5, 4) * 30, torch.rand(2, 5, 3)
    assert compare_tensors((boxes, scores), (boxes.clone(), scores.clone()), (32, 32)).same
    assert not compare_tensors((boxes, scores), (boxes + 0.5, scores), (32, 32)).same
    assert not compare_tensors((boxes, scores), (boxes, scores + 0.1), (32, 32)).same
    assert not compare_tensors((boxes, scores), (boxes, scores / 0), (32, 32)).same
    fewer = compare_tensors((boxes, scores), (boxes[:, :4], scores[:, :4]), (32, 32))
    assert not fewer.same and "5 locations of the student, 4 of the file" in str(fewer)
    far = compare_tensors((boxes - 1e6, scores), (boxes - 1.1e6, scores), (32, 32))
    assert far.same  # beyond any image
