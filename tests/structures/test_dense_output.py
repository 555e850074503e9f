"""The dense output says what Detectron2's own flat predictions, boxes and labels say."""

import dataclasses
from copy import deepcopy
from math import inf
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.structures import Boxes

from d2kd.modeling import get_adapter
from tests.helpers import (
    FAMILIES,
    NUM_CLASSES,
    REG_MAX,
    build_detector,
    distilled,
    flat_assignment,
    make_batch,
    preset,
    run_step,
)

SIZES = [(6, 8), (3, 4), (2, 2)]


def flat(maps):
    """Per level (N, A, C, H, W) -> (N, R, C)."""
    return torch.cat([x.permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps], dim=1)


@pytest.fixture(params=FAMILIES)
def outputs(request):
    """A detector, its head's predictions, its anchors, and the dense output of them."""
    detector = build_detector(request.param)
    features = [torch.randn(2, 8, h, w) for h, w in SIZES]
    with torch.no_grad():
        predictions = detector.head(features)
    anchors = detector.anchor_generator(features)
    return detector, predictions, anchors, get_adapter(detector).dense_output(detector, predictions, anchors)


def test_maps_are_views_in_the_heads_layout(outputs):
    _, predictions, anchors, dense = outputs
    for name, ours, theirs in (
        ("logits", dense.logits, predictions[0]),
        ("box_params", dense.box_params, predictions[1]),
        ("centerness", dense.centerness or [], predictions[2] if len(predictions) > 2 else []),
        ("anchors", dense.anchors, [a.tensor for a in anchors]),
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert a.data_ptr() == b.data_ptr() and a.numel() == b.numel(), name
    assert dense.sizes == SIZES


def test_predictions_and_boxes_are_detectron2s(outputs):
    detector, predictions, anchors, dense = outputs
    dims = [NUM_CLASSES, 4, 1][: len(predictions)]
    logits, deltas, *centerness = (torch.cat(x, 1) for x in detector._transpose_dense_predictions(predictions, dims))
    assert torch.equal(flat(dense.logits), logits)
    if dense.box_params[0].dim() == 5:
        assert torch.equal(flat(dense.box_params), deltas)
    else:  # GFL's deltas are distances in pixels, expected under the head's distributions
        sides = [x.softmax(dim=3).mul(torch.arange(REG_MAX + 1).view(-1, 1, 1)).sum(dim=3) for x in dense.box_params]
        sides = [x * stride for x, stride in zip(sides, detector.anchor_generator.strides, strict=True)]
        torch.testing.assert_close(flat(sides), deltas)
    if centerness:
        assert torch.equal(flat([x[:, :, None] for x in dense.centerness]), centerness[0])
    found = torch.cat([x.permute(0, 2, 3, 1, 4).flatten(1, 3) for x in dense.boxes], dim=1)
    for ours, image_deltas in zip(found, deltas, strict=True):
        boxes = detector.box2box_transform.apply_deltas(image_deltas, Boxes.cat(anchors).tensor)
        torch.testing.assert_close(ours, boxes)
        assert len(boxes.unique(dim=0)) > len(boxes) // 2
    assert all(x.dtype == torch.float32 for x in dense.boxes)


class Shrunk(Box2BoxTransform):
    def apply_deltas(self, deltas, boxes):
        return super().apply_deltas(deltas, boxes / 2)


@pytest.mark.parametrize(
    "transform",
    [
        Box2BoxTransform((10.0, 8.0, 5.0, 4.0)),
        Box2BoxTransformLinear(normalize_by_size=True),
        Box2BoxTransformLinear(normalize_by_size=False),
        Shrunk((1.0, 1.0, 1.0, 1.0)),
    ],
    ids=["deltas", "sizes", "pixels", "own"],
)
def test_boxes_and_gradients_are_those_of_the_detectors_own_transform(transform):
    detector = build_detector("RetinaNet")
    detector.box2box_transform = transform
    features = [torch.randn(2, 8, h, w) for h, w in SIZES]
    anchors, scale = detector.anchor_generator(features), torch.tensor([1.0, -5, 100])  # some beyond the largest size
    logits, deltas = ([torch.randn(2, 2 * c, h, w) for h, w in SIZES] for c in (NUM_CLASSES, 4))
    deltas = [(x * y).requires_grad_() for x, y in zip(deltas, scale)]
    dense = get_adapter(detector).dense_output(detector, [logits, deltas], anchors)
    for boxes, params, level_anchors, leaf in zip(dense.boxes, dense.box_params, anchors, deltas):
        rows = params.permute(0, 3, 4, 1, 2).flatten(1, 3)
        expected = torch.stack([transform.apply_deltas(x, level_anchors.tensor) for x in rows])
        found = boxes.permute(0, 2, 3, 1, 4).flatten(1, 3)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        cotangent = torch.randn_like(expected)
        torch.testing.assert_close(*(torch.autograd.grad(x, leaf, cotangent) for x in (found, expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_predictions_decode_in_fp32(family):
    detector = build_detector(family)
    anchors = detector.anchor_generator([torch.zeros(2, 8, h, w) for h, w in SIZES])
    anchors_per_cell = 2 if family == "RetinaNet" else 1
    box_channels = 4 * (REG_MAX + 1) if family == "GFL" else 4
    predictions = [
        [torch.randn(2, anchors_per_cell * c, h, w).bfloat16() for h, w in SIZES]
        for c in (NUM_CLASSES, box_channels, 1)
    ]
    dense = get_adapter(detector).dense_output(detector, predictions, anchors)
    exact = get_adapter(detector).dense_output(detector, [[x.float() for x in maps] for maps in predictions], anchors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = dense.boxes
    for a, b in zip(boxes, exact.boxes, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


def test_boxes_that_are_first_asked_for_without_gradient_keep_their_graph(outputs):
    dense = outputs[-1]
    dense = dataclasses.replace(dense, box_params=[x.clone().requires_grad_() for x in dense.box_params])
    with torch.no_grad():
        assert all(x.requires_grad for x in dense.boxes)


def test_cropping_keeps_the_top_left_of_everything(outputs):
    dense = outputs[-1]
    sizes = [(5, 8), (3, 2), (1, 1)]
    cropped = dense.crop(sizes)
    assert cropped.sizes == sizes
    for level, (h, w) in enumerate(sizes):
        for name in ("logits", "box_params", "centerness"):
            if getattr(dense, name) is not None:
                part = getattr(cropped, name)[level]
                assert torch.equal(part, getattr(dense, name)[level][..., :h, :w])
                assert part.data_ptr() == getattr(dense, name)[level].data_ptr()
        torch.testing.assert_close(cropped.boxes[level], dense.boxes[level][:, :, :h, :w])


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_stand_where_their_anchors_do(family):
    detector = build_detector(family)
    anchors = detector.anchor_generator([torch.zeros(2, 8, h, w) for h, w in SIZES])
    gt = [x["instances"] for x in make_batch(objects=(3, 0))]
    labelled = detector.label_anchors(anchors, gt)
    assignment = get_adapter(detector).assignment(detector, labelled, gt, SIZES)
    labels = labelled[0]
    found = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in assignment.labels], dim=1)
    assert torch.equal(found, torch.stack(labels))
    counts = [((x >= 0) & (x < NUM_CLASSES)).sum().item() for x in labels]
    assert assignment.num_positives.tolist() == counts
    assert counts[0] > counts[1] == 0
    assert [x.shape for x in assignment.positives] == [x.shape for x in assignment.labels]
    assert all(torch.equal(a, b.gt_boxes.tensor) for a, b in zip(assignment.gt_boxes, gt, strict=True))
    assert all(torch.equal(a, b.gt_classes) for a, b in zip(assignment.gt_classes, gt, strict=True))
    assert assignment.iou_thresholds == ((0.4, 0.5) if family == "RetinaNet" else None)
    valid = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in assignment.valid], dim=1)
    ignored = found < 0
    # RetinaNet ignores anchors for their IoU, the others none but those in the padding of their image.
    assert torch.equal(ignored, ~valid) if family != "RetinaNet" else (valid.all() and ignored.any())
    assert (~valid).any() == (family in ("GFL", "ATSS"))


@pytest.mark.parametrize(
    "thresholds, expected",
    [
        ([-inf, 0.4, 0.5, inf], (0.4, 0.5)),
        ([0.3, 0.7], (0.3, 0.7)),  # without infinity at the ends
        ([-inf, 0.5, inf], (0.5, 0.5)),
        ([-inf, inf], None),
        ([], None),
        (0.5, None),
        (None, None),
        ("absent", None),
    ],
)
def test_a_matcher_of_ones_own(thresholds, expected):
    """It may choose in any way: finite thresholds are read, if it has some; the detector trains, alone and taught."""
    detector = build_detector("RetinaNet")
    stock, matcher = detector.anchor_matcher, SimpleNamespace()
    if thresholds != "absent":
        matcher.thresholds = thresholds
    detector.anchor_matcher = OwnMatcher(stock, matcher)
    anchors = detector.anchor_generator([torch.zeros(2, 8, h, w) for h, w in SIZES])
    gt = [x["instances"] for x in make_batch()]
    labelled = detector.label_anchors(anchors, gt)
    assert get_adapter(detector).assignment(detector, labelled, gt, SIZES).iou_thresholds == expected
    alone = run_step(distilled(deepcopy(detector)), make_batch())
    losses = run_step(
        distilled(detector, build_detector("RetinaNet", seed=1), preset("tid", "RetinaNet")), make_batch()
    )
    assert losses["loss_kd_tid"].isfinite() and all(torch.equal(losses[name], value) for name, value in alone.items())


class OwnMatcher:
    """Matches as another does, and has the attributes that it is given."""

    def __init__(self, stock, attributes):
        self._stock = stock
        vars(self).update(vars(attributes))

    def __call__(self, overlaps):
        return self._stock(overlaps)


def test_labels_of_another_order_or_number_are_refused():
    with pytest.raises(ValueError, match=r"returned 65 labels an image, expected a multiple of 64.*\(6, 8\)"):
        flat_assignment(torch.zeros(1, 65, dtype=torch.long), NUM_CLASSES, SIZES)


def test_anchors_of_several_shapes_keep_their_slots():
    generator = DefaultAnchorGenerator(sizes=[[8, 12]], aspect_ratios=[0.5, 2.0], strides=[8], offset=0.5)
    detector = build_detector("RetinaNet")
    (anchors,) = generator([torch.zeros(1, 1, 3, 5)])
    maps = [[torch.zeros(1, 4 * c, 3, 5)] for c in (NUM_CLASSES, 4)]
    dense = get_adapter(detector).dense_output(detector, maps, [anchors])
    boxes = dense.boxes[0][0]  # of zero deltas: the anchors themselves
    torch.testing.assert_close(boxes, dense.anchors[0])
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    assert torch.allclose(areas[:2], torch.tensor(64.0)) and torch.allclose(areas[2:], torch.tensor(144.0))
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    expected = torch.stack(torch.meshgrid(torch.arange(5) * 8 + 4.0, torch.arange(3) * 8 + 4.0, indexing="xy"), -1)
    torch.testing.assert_close(centers, expected.expand_as(centers))


@pytest.mark.parametrize("family", FAMILIES)
def test_distances_that_decoding_rectifies_are_marked(family):
    """Whatever an adapter says of it is what its decoding does to a parameter below zero."""
    detector = build_detector(family)
    anchors = detector.anchor_generator([torch.zeros(1, 8, h, w) for h, w in SIZES])
    features = [torch.zeros(1, 8, h, w) for h, w in SIZES]
    predictions = [[torch.zeros_like(x) for x in maps] for maps in detector.head(features)]
    at_zero = get_adapter(detector).dense_output(detector, predictions, anchors)
    below = dataclasses.replace(at_zero, box_params=[x - 1 for x in at_zero.box_params])
    moved = any(not torch.equal(a, b) for a, b in zip(at_zero.boxes, below.boxes, strict=True))
    if at_zero.box_params[0].dim() == 5:  # not bins, which a constant does not move
        assert moved != at_zero.rectified
    else:
        assert not at_zero.rectified
    assert at_zero.crop([(1, 1)] * 3).rectified == at_zero.rectified
