"""The head of all dense detectors of the papers."""

import pickle
from copy import deepcopy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

from d2kd.modeling.backbones import group_norm
from d2kd.modeling.detectors import ATSSHead, DenseHead, GFLHead
from tests.helpers import LEVELS, NUM_CLASSES, PIXELS, build_detector, gradients, make_batch, run_step
from tests.modeling.detectors.helpers import GivenSizes, transposed

OPTIONS = dict(input_shape=[ShapeSpec(channels=8)] * 3, num_classes=NUM_CLASSES, conv_dims=[8, 8])
FEATURES = [(2, 8, 6, 8), (2, 8, 3, 4), (2, 8, 1, 1)]


def features():
    return [torch.randn(*size) for size in FEATURES]


def scramble(head):
    """Parameters that differ from place to place."""
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head


def test_keys():
    """Those of Detectron2's heads; GFL's convolutions have no bias where a norm follows."""
    tower = [f"{name}_subnet.{i}.{x}" for name in ("cls", "bbox") for i in (0, 2) for x in ("weight", "bias")]
    plain = {*tower, *(f"{name}.{x}" for name in ("cls_score", "bbox_pred") for x in ("weight", "bias"))}
    assert set(DenseHead(**OPTIONS).state_dict()) == plain
    assert set(RetinaNetHead(num_anchors=1, **OPTIONS).state_dict()) == plain
    assert set(DenseHead(centerness_on="box", **OPTIONS).state_dict()) == set(FCOSHead(**OPTIONS).state_dict())

    norm = group_norm(4)
    convs = [f"{name}_subnet.{i}.weight" for name in ("cls", "bbox") for i in (0, 3)]
    norms = [f"{name}_subnet.{i}.{x}" for name in ("cls", "bbox") for i in (1, 4) for x in ("weight", "bias")]
    scales = [f"scales.{level}.scale" for level in range(3)]
    expected = {*convs, *norms, *scales, *(key for key in plain if "subnet" not in key)}
    assert set(GFLHead(norm=norm, **OPTIONS).state_dict()) == expected
    expected |= {"ctrness.weight", "ctrness.bias"}
    assert set(ATSSHead(norm=norm, **OPTIONS).state_dict()) == expected


@pytest.mark.parametrize("head_class", [GFLHead, ATSSHead])
def test_initial_values(head_class):
    torch.manual_seed(0)
    options = {**OPTIONS, "input_shape": [ShapeSpec(channels=64)] * 3, "conv_dims": [64, 64], "num_classes": 20}
    head = head_class(prior_prob=0.02, **options)
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1), name
            assert module.weight.mean().abs() < 1e-3, name
        elif isinstance(module, nn.GroupNorm):
            assert module.num_groups == 32 and (module.weight == 1).all() and not module.bias.any()
    assert not head.bbox_pred.bias.any()
    assert [x.scale.item() for x in head.scales] == [1, 1, 1] and head.scales[0].scale.shape == ()
    scores = head([torch.zeros(1, 64, 2, 2)] * 3)[0][0].sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.02))


@pytest.mark.parametrize("detectron2, ours", [(RetinaNetHead, {}), (FCOSHead, dict(centerness_on="box"))])
@pytest.mark.parametrize("norm", ["", "BN"])
def test_equals_detectron2s_heads(detectron2, ours, norm):
    """With their weights, biases before a norm apart; "BN" has statistics of each level, and cycles over them."""
    theirs = detectron2(norm=norm, **{**OPTIONS, **({} if ours else dict(num_anchors=2))})
    head = DenseHead(norm=norm, **{**OPTIONS, **(ours or dict(num_anchors=2))})
    scramble(theirs)
    state = theirs.state_dict()
    for key in set(state) - set(head.state_dict()):
        state[key].zero_()
        assert "subnet" in key and key.endswith("bias")
    head.load_state_dict({key: state[key] for key in head.state_dict()})
    for _ in range(2):
        x = features()
        for found, expected in zip(head(x), theirs(x), strict=True):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b)
    if norm:
        means = [x.running_mean for x in head.cls_subnet[1]]
        assert len(means) == 3 and not torch.equal(means[0], means[1])
        assert torch.equal(means[0], theirs.cls_subnet[1][0].running_mean)


@pytest.mark.parametrize("centerness_on", [None, "box", "cls"])
def test_predict_is_what_forward_does_after_the_towers(centerness_on):
    head = scramble(DenseHead(centerness_on=centerness_on, scale_levels=True, reg_max=4, num_anchors=2, **OPTIONS))
    x = features()
    found = head(x)
    assert [len(maps) for maps in found] == [3] * (2 if centerness_on is None else 3)
    channels = [2 * NUM_CLASSES, 2 * 4 * 5, 2]
    for maps, count in zip(found, channels):
        assert [tuple(m.shape) for m in maps] == [(2, count, *size[2:]) for size in FEATURES]
    for level, feature in enumerate(x):
        towers = {"cls": head.cls_subnet(feature), "box": head.bbox_subnet(feature)}
        for a, b in zip(head.predict(level, towers), found, strict=True):
            assert torch.equal(a, b[level])


def test_the_tower_of_centerness():
    head = scramble(DenseHead(centerness_on="cls", **OPTIONS))
    towers = {"cls": torch.randn(1, 8, 2, 2), "box": torch.randn(1, 8, 2, 2)}
    centerness = head.predict(0, towers)[2]
    assert torch.equal(centerness, head.ctrness(towers["cls"]))
    head.centerness_on = "box"
    assert torch.equal(head.predict(0, towers)[2], head.ctrness(towers["box"]))


def test_each_level_has_its_scale():
    head = scramble(DenseHead(scale_levels=True, **OPTIONS))
    x = [torch.randn(1, 8, 4, 4)] * 3
    for level, scale in enumerate((1.0, 2.0, -3.0)):
        head.scales[level].scale.data.fill_(scale)
    logits, boxes = head(x)
    torch.testing.assert_close(boxes[1], 2 * boxes[0])
    torch.testing.assert_close(boxes[2], -3 * boxes[0])
    assert torch.equal(logits[0], logits[1])


def test_exponential_distances():
    """The head of FCOS as published: distances exp(scale * output) in pixels, centerness on the classes' tower."""
    torch.manual_seed(0)
    head = scramble(DenseHead(centerness_on="cls", scale_levels=True, box_activation="exp", **OPTIONS))
    head.bbox_pred.bias.data.fill_(2.0)
    x = features()
    outputs = [head.bbox_pred(head.bbox_subnet(feature)) for feature in x]
    expected = [(scale.scale * output).exp() for scale, output in zip(head.scales, outputs, strict=True)]
    detector = FCOS(
        backbone=GivenSizes([size[2:] for size in FEATURES]),
        head=head,
        head_in_features=LEVELS,
        num_classes=NUM_CLASSES,
        box2box_transform=Box2BoxTransformLinear(normalize_by_size=False),
        **PIXELS,
    )
    predictions = head(x)
    anchors = detector.anchor_generator(x)
    _, deltas, _ = transposed(detector, predictions)
    for level, stride in enumerate((8, 16, 32)):
        distances = expected[level][1].permute(1, 2, 0)
        torch.testing.assert_close(deltas[level][1], distances.flatten(0, 1))
        boxes = detector.box2box_transform.apply_deltas(deltas[level][1], anchors[level].tensor)
        h, w = FEATURES[level][2:]
        for y in range(h):
            for x_ in range(w):
                left, top, right, bottom = distances[y, x_]
                center_x, center_y = (x_ + 0.5) * stride, (y + 0.5) * stride
                box = torch.stack([center_x - left, center_y - top, center_x + right, center_y + bottom])
                torch.testing.assert_close(boxes[y * w + x_], box)


def test_exponential_distances_in_half_precision():
    head = DenseHead(box_activation="exp", **OPTIONS).bfloat16()
    head.bbox_pred.bias.data.fill_(12)
    boxes = head([x.bfloat16() for x in features()])[1]
    assert boxes[0].dtype == torch.float32 and boxes[0].isfinite().all() and boxes[0].max() > 65504


@pytest.mark.parametrize("family, options", [("RetinaNet", dict(num_anchors=2)), ("FCOS", dict(centerness_on="cls"))])
@pytest.mark.parametrize("norm", ["", "BN", group_norm(4)])
def test_in_detectron2s_detectors(family, options, norm):
    head = scramble(DenseHead(norm=norm, scale_levels=True, **OPTIONS, **options))
    detector = build_detector(family, head=head)
    losses = run_step(detector, make_batch())
    grads = gradients(detector, sum(losses.values()))
    unreached = {name for name, x in grads.items() if name.startswith("head.") and x is None}
    assert not unreached
    assert all(x.isfinite() for x in losses.values())


def test_copies_and_pickles():
    head = scramble(DenseHead(norm="BN", scale_levels=True, centerness_on="box", **OPTIONS)).eval()
    x = features()
    for copy in (deepcopy(head), pickle.loads(pickle.dumps(head))):
        for found, expected in zip(copy(x), head(x), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(centerness_on="bbox"), ["centerness_on", "'bbox'", "'box', 'cls' or None"]),
        (dict(box_activation="relu"), ["box_activation", "'relu'", "'exp' or None"]),
        (dict(reg_max=0), ["reg_max", "0", "at least 1"]),
        (dict(reg_max=16.0), ["reg_max", "16.0", "whole number"]),
        (dict(reg_max=True), ["reg_max", "True", "whole number"]),
        (dict(reg_max=16, box_activation="exp"), ["box_activation", "'exp'", "reg_max 16"]),
        (dict(input_shape=[ShapeSpec(channels=8), ShapeSpec(channels=16)]), ["input_shape", "[8, 16]"]),
    ],
)
def test_refused_options(options, words):
    with pytest.raises(ValueError) as error:
        DenseHead(**{**OPTIONS, **options})
    assert all(word in str(error.value) for word in words)


def test_refuses_other_levels():
    with pytest.raises(ValueError, match="built for 3 levels and got 2.*head_in_features"):
        DenseHead(**OPTIONS)(features()[:2])
