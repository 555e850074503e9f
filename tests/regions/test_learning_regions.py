"""TID's areas of given scores, by hand."""

import pytest
import torch

from d2kd.regions.task_integration import learning_areas
from tests.regions.task_scenes import AREAS


def learn(teacher, source, **options):
    teacher, source = (torch.tensor([x], dtype=torch.float32) for x in (teacher, source))
    found = learning_areas(teacher, source, **{"known": torch.ones_like(teacher, dtype=torch.bool), **options})
    return {area: weights[0].tolist() for area, weights in found.items()}


def members(found):
    """The area of each cell."""
    return [next((a for a in AREAS if found[a][i] > 0), None) for i in range(len(found["rest"]))]


def test_areas_by_hand():
    found = learn(teacher=[4, 4, 3, 2.25, 0.8, 0.16, 0.6], source=[0.16, 4, 4, 2.25, 0.6, 0.16, 0.8])
    assert members(found) == ["weak", "key", "key", "key", "weak", "rest", "rest"]
    assert found["weak"] == pytest.approx([3.84, 0, 0, 0, 0.2, 0, 0])
    assert found["key"] == pytest.approx([0, 1, 0.75, 0.5625, 0, 0, 0])
    assert found["rest"] == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ["weak", "weak", "weak", "key", "key", "rest"]),
        (dict(min_gap=0.75), ["weak", "key", "rest", "key", "key", "rest"]),  # a gap of 0.75 does not exceed it
        (dict(min_gap=0.74), ["weak", "weak", "rest", "key", "key", "rest"]),
        (dict(min_gap=0.2), ["weak", "weak", "rest", "key", "key", "rest"]),  # fp32: 0.8 - 0.6 > 0.2
        (dict(min_teacher_score=0.8), ["weak", "weak", "weak", "key", "key", "rest"]),
        (dict(min_teacher_score=0.9), ["weak", "weak", "rest", "key", "key", "rest"]),
        (dict(key_threshold=3), ["weak", "weak", "weak", "rest", "key", "rest"]),
        (dict(key_threshold=3.1), ["weak", "weak", "weak", "rest", "rest", "rest"]),
        (dict(key_threshold=0.6), ["weak", "weak", "weak", "key", "key", "key"]),
        (dict(drop_student_better=True), ["weak", "weak", "weak", "key", None, "rest"]),
    ],
)
def test_thresholds_of_the_areas(options, expected):
    assert members(learn([4, 3, 0.8, 2.25, 3, 0.6], [0.16, 2.25, 0.6, 2.25, 4, 0.8], **options)) == expected


def test_key_cells_may_be_the_labelled_ones():
    labelled = torch.tensor([[True, True, False, False]])
    teacher, source = [4, 0.6, 4, 0.6], [4, 0.6, 4, 0.6]
    for key_from, expected in (("teacher", "krkr"), ("gt", "kkrr"), ("either", "kkkr")):
        found = members(learn(teacher, source, labelled=labelled, key_from=key_from))
        assert [x[0] for x in found] == list(expected)
    # weak stays weak
    assert members(learn([4], [3], labelled=torch.tensor([[True]]), key_from="gt")) == ["weak"]


def test_weak_cells_of_each_object_are_ranked():
    options = dict(
        objects=torch.tensor([[0, 1, 0, 0, 1, 0]]),
        overlaps=torch.tensor([[0.5, 0.9, 0.7, 0.99, 0.8, 0.6]]),
        cell_weight="uniform",
    )
    teacher, source = [4, 4, 4, 2, 3, 4], [0, 1, 0, 1, 1, 0]
    assert learn(teacher, source, weak_topk=1, **options)["weak"] == [0, 1, 1, 0, 0, 0]
    assert learn(teacher, source, weak_topk=2, **options)["weak"] == [0, 1, 1, 0, 1, 1]
    found = learn(teacher, source, weak_topk=3, **options)
    assert found["weak"] == [1, 1, 1, 0, 1, 1] and found["rest"] == [0, 0, 0, 1, 0, 0]
    assert learn(teacher, source, weak_topk=4, **options)["weak"] == [1] * 6
    assert learn(teacher, source, weak_topk=1, **options)["key"] == [1, 0, 0, 0, 1, 1]  # those left out are good cells


def test_scores_within_a_ten_thousandth_are_equal():
    assert members(learn([0.50005, 0.5002], [0.5, 0.5], key_threshold=4)) == ["rest", "weak"]
    assert members(learn([0.79995, 0.7998], [0.5, 0.5], min_teacher_score=0.8, key_threshold=4)) == ["weak", "rest"]
    assert members(learn([2.24995, 2.2498], [4, 4], key_threshold=2.25)) == ["key", "rest"]
    assert members(learn([3.99995, 3.9998], [4, 4], drop_student_better=True)) == ["key", None]


def test_cells_of_which_nothing_is_known_are_of_the_rest():
    known = torch.tensor([[False, True, False, True]])
    assert members(learn([4, 4, 4, 4], [1, 1, 4, 4], known=known)) == ["rest", "weak", "rest", "key"]
    labelled = torch.tensor([[True]])
    assert members(learn([4], [4], known=known[:, :1], labelled=labelled, key_from="either")) == ["rest"]
