"""The ATSS assigner as an object that a config can name: `d2kd.regions.atss` is tested on its own."""

import pytest
import torch

from d2kd.modeling.detectors import ATSSAssigner
from d2kd.regions.atss import assign
from tests.assignment_scenes import random_scene


def test_assigner():
    anchors, boxes, valid = random_scene(4)
    assigner = ATSSAssigner(topk=3)
    assert repr(assigner) == "ATSSAssigner(topk=3)"
    assert ATSSAssigner().topk == 9
    assert torch.equal(assigner(anchors, boxes, valid=valid), assign(anchors, boxes, topk=3, valid=valid))
    assert torch.equal(assigner(anchors, boxes), assign(anchors, boxes, topk=3))
    assert not torch.equal(assigner(anchors, boxes), assign(anchors, boxes, topk=9))


@pytest.mark.parametrize("topk", [1, 0, -3, 9.0, True, "9"])
def test_too_few_candidates(topk):
    with pytest.raises(ValueError, match=r"ATSSAssigner's topk is .*, expected a whole number of at least 2"):
        ATSSAssigner(topk)
