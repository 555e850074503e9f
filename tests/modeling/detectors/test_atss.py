"""ATSS's losses, location by location in plain Python; and GFL's and ATSS's heads with the papers' own weights."""

import math

import pytest
import torch
from fvcore.nn import giou_loss

from tests.helpers import NUM_CLASSES, make_batch, run_step
from tests.modeling.detectors.helpers import build_given, random_maps, transposed
from tests.modeling.distillation.golden_scene import (
    build_golden_detector,
    build_head,
    load_golden,
    load_head,
    make_scene,
    to_maps,
)


@pytest.mark.parametrize("name", ["ATSS", "DistributionATSS"])
def test_losses(name):
    maps, batch = random_maps(name), make_batch([(48, 64), (40, 30)], objects=[4, 2])
    detector = build_given(name, maps)
    found = run_step(detector, batch)

    anchors = detector.anchor_generator([x[:, :1] for x in maps[0]])
    labels, boxes = detector.label_anchors(anchors, [x["instances"] for x in batch])
    logits, deltas, centerness = transposed(detector, maps)
    logits, deltas, centerness = (torch.cat(x, dim=1) for x in (logits, deltas, centerness))
    anchors = torch.cat([x.tensor for x in anchors])
    cls = box = quality = target_sum = 0.0
    num_positives = [0, 0]
    for i in range(2):
        for r, label in enumerate(labels[i].tolist()):
            if label < 0:
                continue
            for k, z in enumerate(logits[i, r].tolist()):
                p = 1 / (1 + math.exp(-z))
                cls -= 0.25 * (1 - p) ** 2 * math.log(p) if k == label else 0.75 * p**2 * math.log(1 - p)
            if label == NUM_CLASSES:
                continue
            num_positives[i] += 1
            x = (anchors[r, 0] + anchors[r, 2]).item() / 2
            y = (anchors[r, 1] + anchors[r, 3]).item() / 2
            x1, y1, x2, y2 = boxes[i][r].tolist()
            sides = [sorted((x - x1, x2 - x)), sorted((y - y1, y2 - y))]
            target = math.sqrt(sides[0][0] / sides[0][1] * sides[1][0] / sides[1][1])
            decoded = detector.box2box_transform.apply_deltas(deltas[i, r, None], anchors[r, None])
            box += target * giou_loss(decoded, boxes[i][r, None]).item()
            p = 1 / (1 + math.exp(-centerness[i, r].item()))
            quality -= target * math.log(p) + (1 - target) * math.log(1 - p)
            target_sum += target
    assert min(num_positives) > 2 and target_sum > 1
    assert found["loss_cls"].item() == pytest.approx(cls / sum(num_positives), rel=1e-5)
    assert found["loss_box_reg"].item() == pytest.approx(2 * box / target_sum, rel=1e-5)
    assert found["loss_centerness"].item() == pytest.approx(quality / sum(num_positives), rel=1e-5)


@pytest.mark.parametrize("family, third", [("GFL", "loss_dfl"), ("ATSS", "loss_centerness")])
def test_with_the_exported_head(family, third):
    """From the exported FPN features to losses and the features' gradients."""
    arrays = load_golden(f"06_crosskd_{family.lower()}.npz")
    features = [x.requires_grad_() for x in to_maps(arrays["in/stu_feat"], arrays["level_hw"])]
    head = build_head(family)
    load_head(family, head, arrays, "student")
    names = dict(loss_cls="loss_cls", loss_box_reg="loss_bbox") | {third: third}
    detector = build_golden_detector(family, features, head)
    batch = make_scene(*([arrays[f"gt/{what}{i}"] for i in range(2)] for what in ("boxes", "classes")), (64, 96))
    losses = run_step(detector, batch)
    assert list(losses) == list(names)
    for ours, theirs in names.items():
        torch.testing.assert_close(losses[ours], arrays[f"{theirs}__per_level"].sum(), rtol=2e-5, atol=0)
    grads = torch.autograd.grad(sum(losses.values()), features)
    found = torch.cat([x.flatten(2).transpose(1, 2) for x in grads], dim=1)
    expected = arrays["sup__grad_stu_feat"]
    # Group norm over the two values of the 1x1 level leaves their order only: a gradient of rounding errors.
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6 * expected.abs().max().item())
