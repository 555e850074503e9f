"""TID's regions of given scores, by hand."""

import pytest
import torch

from d2kd.regions import learning_regions
from tests.regions.task_scenes import REGIONS


def learn(teacher, source, **options):
    teacher, source = (torch.tensor([x], dtype=torch.float32) for x in (teacher, source))
    found = learning_regions(teacher, source, **{"known": torch.ones_like(teacher, dtype=torch.bool), **options})
    return {region: weights[0].tolist() for region, weights in found.items()}


def members(found):
    """The region of each cell."""
    return [next(region for region in REGIONS if found[region][i] > 0) for i in range(len(found["rest"]))]


def test_regions_by_hand():
    found = learn(teacher=[4, 4, 3, 2.25, 0.8, 0.16, 0.6], source=[0.16, 4, 4, 2.25, 0.6, 0.16, 0.8])
    assert members(found) == ["weak", "key", "key", "key", "weak", "rest", "rest"]
    assert found["weak"] == pytest.approx([3.84, 0, 0, 0, 0.2, 0, 0])
    assert found["key"] == pytest.approx([0, 1, 0.75, 0.5625, 0, 0, 0])
    assert found["rest"] == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ["weak", "weak", "weak", "key", "key", "rest"]),
        (dict(min_teacher_score=0.8), ["weak", "weak", "weak", "key", "key", "rest"]),
        (dict(min_teacher_score=0.9), ["weak", "weak", "rest", "key", "key", "rest"]),
        (dict(min_teacher_score=3.5), ["weak", "key", "rest", "key", "key", "rest"]),
        (dict(combine="sum"), ["weak", "weak", "weak", "rest", "key", "rest"]),  # key from 3
        (dict(combine="cls"), ["weak", "weak", "weak", "key", "key", "rest"]),  # from 1.5
    ],
)
def test_thresholds_of_the_regions(options, expected):
    assert members(learn([4, 3, 0.8, 2.25, 3, 0.6], [0.16, 2.25, 0.6, 2.25, 4, 0.8], **options)) == expected


@pytest.mark.parametrize("combine, top", [("product", 4), ("sum", 4), ("cls", 2), ("reg", 2)])
def test_a_key_cell_weighs_its_share_of_the_highest_score(combine, top):
    assert learn([top, 0.8 * top], [top, top], combine=combine)["key"] == pytest.approx([1, 0.8])


def test_scores_within_a_ten_thousandth_are_equal():
    assert members(learn([0.50005, 0.5002], [0.5, 0.5])) == ["rest", "weak"]
    assert members(learn([0.79995, 0.7998], [0.5, 0.5], min_teacher_score=0.8)) == ["weak", "rest"]
    assert members(learn([2.24995, 2.2498], [4, 4])) == ["key", "rest"]


def test_cells_of_which_nothing_is_known_are_of_the_rest():
    known = torch.tensor([[False, True, False, True]])
    assert members(learn([4, 4, 4, 4], [1, 1, 4, 4], known=known)) == ["rest", "weak", "rest", "key"]
