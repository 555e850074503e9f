"""Boxes as distributions, in every detector that has them."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS

from d2kd.modeling.detectors import ATSS, DenseHead, DistributionBoxes
from tests.helpers import make_batch, run_step
from tests.modeling.detectors.helpers import (
    CLASSES,
    DISTRIBUTIONS,
    REG_MAX,
    build,
    build_given,
    build_head,
    random_maps,
    transposed,
)

STRIDES = (8, 16, 32)


def brute_force_boxes(name, maps, anchors):
    """Decode location by location: softmax, mean, times the stride, from the anchor's centre."""
    levels = []
    num_anchors = 2 if name == "DistributionRetinaNet" else 1
    for bins, boxes, stride in zip(maps[1], anchors, STRIDES, strict=True):
        n, _, h, w = bins.shape
        bins = bins.double().view(n, num_anchors, 4, REG_MAX + 1, h, w)
        decoded = torch.zeros(n, h, w, num_anchors, 4, dtype=torch.float64)
        for i, y, x, a in torch.cartesian_prod(*(torch.arange(k) for k in (n, h, w, num_anchors))).tolist():
            left, top, right, bottom = (
                sum(j * p.item() for j, p in enumerate(side.softmax(0))) * stride for side in bins[i, a, :, :, y, x]
            )
            x1, y1, x2, y2 = boxes.tensor.view(h, w, num_anchors, 4)[y, x, a].tolist()
            center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
            decoded[i, y, x, a] = torch.tensor([center_x - left, center_y - top, center_x + right, center_y + bottom])
        levels.append(decoded.flatten(1, 3))
    return torch.cat(levels, dim=1)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_boxes(name):
    maps = random_maps(name)
    detector = build_given(name, maps)
    anchors = detector.anchor_generator([x[:, :1] for x in maps[0]])
    _, distances, *_ = transposed(detector, maps)
    found = torch.cat(
        [
            torch.stack([detector.box2box_transform.apply_deltas(x, boxes.tensor) for x in level])
            for level, boxes in zip(distances, anchors, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(found.double(), brute_force_boxes(name, maps, anchors), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name, plain, box_loss, weight",
    [
        ("DistributionRetinaNet", RetinaNet, "loss_box_reg", 2.0),
        ("DistributionFCOS", FCOS, "loss_fcos_loc", 1.0),
        ("DistributionATSS", ATSS, "loss_box_reg", 2.0),
    ],
)
def test_only_the_boxes_are_predicted_otherwise(name, plain, box_loss, weight):
    """Its losses are those of the detector without distributions that predicts the same distances in pixels."""
    maps, batch = random_maps(name), make_batch([(48, 64), (40, 60)])
    detector = build_given(name, maps)
    losses = run_step(detector, batch)

    levels = [x.unflatten(1, (-1, 4, REG_MAX + 1)).softmax(3) for x in maps[1]]
    bins = torch.arange(REG_MAX + 1.0).view(-1, 1, 1)
    distances = [((p * bins).sum(3) * s).flatten(1, 2) for p, s in zip(levels, STRIDES, strict=True)]
    other = build_given(name, maps)
    other.__class__ = type("Plain", (plain,), {})
    other.head.maps = [maps[0], distances, *maps[2:]]
    expected = run_step(other, batch)

    assert list(losses) == list(expected)
    expected[box_loss] = expected[box_loss] * (1 if name == "DistributionATSS" else weight)
    for key, value in expected.items():
        assert value > 0
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-7)
    build_kwargs = dict(box_loss_weight=3 * weight)
    tripled = run_step(build_given(name, maps, **build_kwargs), batch)
    torch.testing.assert_close(tripled[box_loss], 3 * losses[box_loss])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_one_step_lowers_the_losses(name):
    detector, batch = build(name), make_batch()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    total = sum(run_step(detector, batch).values())
    total.backward()
    optimizer.step()
    vars(detector).pop("loss_normalizer", None)  # Detectron2's moves from step to step
    assert sum(run_step(detector, batch).values()) < total


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_refuses_a_head_without_distributions(name):
    with pytest.raises(ValueError, match=f"{name} needs a head .* found DenseHead without reg_max: give it"):
        build(name, head=build_head(name, reg_max=None))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_refuses_a_box_transform(name):
    with pytest.raises(TypeError, match="remove box2box_transform"):
        build(name, box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)))


def test_refuses_another_box_loss():
    with pytest.raises(TypeError, match="box loss is GIoU: remove box_reg_loss_type"):
        build("DistributionRetinaNet", box_reg_loss_type="smooth_l1")


def test_atss_refuses_a_head_with_distributions():
    with pytest.raises(ValueError, match=f"reg_max {REG_MAX}.*DistributionATSS"):
        build("ATSS", head=build_head("DistributionATSS"))


def test_what_detectors_are():
    """Adapters find a detector's family by its classes."""
    for name in DISTRIBUTIONS:
        detector = build(name)
        assert isinstance(detector, DistributionBoxes) and isinstance(detector.head, DenseHead)
        assert isinstance(detector.box2box_transform, Box2BoxTransformLinear)
        assert not detector.box2box_transform.normalize_by_size
    assert issubclass(CLASSES["DistributionATSS"], ATSS)
    assert issubclass(CLASSES["DistributionRetinaNet"], RetinaNet)
    assert issubclass(CLASSES["DistributionFCOS"], FCOS)
    assert isinstance(build("ATSS").box2box_transform, Box2BoxTransform)
    assert list(build("ATSS").box2box_transform.weights) == [10.0, 10.0, 5.0, 5.0]
