"""Which anchors GFL and ATSS train on, and their labels."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from tests.helpers import NUM_CLASSES, make_batch, run_step
from tests.modeling.detectors.helpers import LOSSES, build, build_given, random_maps

SIZES = [(6, 8), (3, 4), (2, 2)]


def instances(size, boxes=(), classes=()):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes, dtype=torch.int64))


def anchors_of(detector, sizes=SIZES):
    return detector.anchor_generator([torch.zeros(1, 1, *size) for size in sizes])


@pytest.mark.parametrize("name", ["GFL", "ATSS"])
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("size", [(48, 64), (33, 64), (32, 17), (1, 1), (16, 32)])
def test_valid_anchors(name, offset, size):
    """Cells of the image padded alone to multiples of 16; in the 48x64 batch."""
    detector = build_given(name, random_maps(name))
    detector.anchor_generator.offset = offset
    found = detector.valid_anchors(anchors_of(detector), [instances((48, 64)), instances(size)])
    height, width = (math.ceil(x / 16) * 16 for x in size)
    expected = [
        y < math.ceil(height / s) and x < math.ceil(width / s)
        for (h, w), s in zip(SIZES, (8, 16, 32), strict=True)
        for y in range(h)
        for x in range(w)
    ]
    assert found.dtype == torch.bool and found[0].all()
    assert found[1].tolist() == expected


def test_valid_anchors_without_padding_rule():
    """A backbone that pads to nothing in particular: the image's own size."""
    detector = build_given("GFL", random_maps("GFL"))
    detector.backbone.size_divisibility = 0
    valid = detector.valid_anchors(anchors_of(detector), [instances((17, 40))])
    assert valid[0, :48].reshape(6, 8).sum(0).tolist() == [3] * 5 + [0] * 3


def test_valid_anchors_of_several_a_cell():
    """Each anchor of a cell is as valid as the cell, in (H, W, A) order."""
    detector = build_given("GFL", random_maps("GFL"))
    one = detector.valid_anchors(anchors_of(detector), [instances((30, 50))])
    three = build_given("GFL", random_maps("GFL"))
    three.anchor_generator = type(three.anchor_generator)(
        sizes=[[8, 16, 32]] * 3, aspect_ratios=[1.0], strides=[8, 16, 32], offset=0.0
    )
    found = three.valid_anchors(anchors_of(three), [instances((30, 50))])
    assert torch.equal(found, one.repeat_interleave(3, dim=1)) and not found.all()


def test_labels():
    detector = build_given("GFL", random_maps("GFL"))
    images = [instances((32, 32), [[4, 4, 30, 30], [1, 1, 9, 12]], [2, 0]), instances((48, 64))]
    anchors = anchors_of(detector)
    (labels, no_objects), (boxes, no_boxes) = detector.label_anchors(anchors, images)
    valid = detector.valid_anchors(anchors, images)[0]
    matched = detector.assigner([x.tensor for x in anchors], images[0].gt_boxes.tensor, valid=valid)
    assert set(matched.tolist()) == {-1, 0, 1} and not valid.all()
    expected = [(-1 if not v else NUM_CLASSES if m < 0 else [2, 0][m]) for m, v in zip(matched.tolist(), valid)]
    assert labels.tolist() == expected
    assert torch.equal(boxes[matched >= 0], images[0].gt_boxes.tensor[matched[matched >= 0]])
    assert boxes.shape == (64, 4) and not boxes[matched < 0].any()
    assert no_objects.tolist() == [NUM_CLASSES] * 64 and not no_boxes.any()
    assert labels.dtype == no_objects.dtype == torch.int64


@pytest.mark.parametrize("name", ["GFL", "ATSS", "DistributionATSS"])
def test_label_anchors_is_called_once_a_step(name, monkeypatch):
    detector, calls = build(name), []
    label_anchors = detector.label_anchors
    monkeypatch.setattr(detector, "label_anchors", lambda *args: calls.append(args) or label_anchors(*args))
    run_step(detector, make_batch())
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["GFL", "ATSS", "DistributionATSS"])
def test_anchors_in_padding_have_no_say(name):
    """Predictions where an image's own padding ends change no loss; those inside do."""
    batch = make_batch([(48, 64), (30, 30)])
    maps = random_maps(name)
    expected = run_step(build_given(name, maps), batch)
    for level, (size, stride) in enumerate(zip(SIZES, (8, 16, 32), strict=True)):
        beyond = torch.ones(size, dtype=torch.bool)
        beyond[: math.ceil(32 / stride), : math.ceil(32 / stride)] = False
        for x in maps:
            x[level][1][:, beyond] = torch.randn(x[level].shape[1], int(beyond.sum()))
    found = run_step(build_given(name, maps), batch)
    assert list(found) == LOSSES[name]
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7)
    maps[0][0][1, :, 0, 0] += 3
    assert run_step(build_given(name, maps), batch)["loss_cls"] > expected["loss_cls"] * 1.001
