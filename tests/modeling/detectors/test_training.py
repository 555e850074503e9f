"""Training steps of every detector: batches that are unusual, autocast, what is logged."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from tests.helpers import NUM_CLASSES, gradients, make_batch
from tests.modeling.detectors.helpers import CLASSES, LOSSES, build, build_given, random_maps

BATCHES = {
    "ordinary": make_batch(),
    "no objects at all": make_batch(objects=0),
    "one image without": make_batch(objects=[0, 2]),
    "a level of one cell": make_batch([(32, 32)], objects=1),
    "smaller than a cell": make_batch([(5, 6)], objects=0),
    "one small and one large": make_batch([(5, 6), (64, 96)], objects=[0, 3]),
}


def step(detector, batch):
    with EventStorage() as storage:
        return detector(batch), storage


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CLASSES)
def test_losses_are_finite_and_connected(name, batch):
    """To every parameter of the head, which DistributedDataParallel asks for."""
    detector = build(name)
    losses, storage = step(detector, BATCHES[batch])
    assert list(losses) == LOSSES[name]
    assert all(x.isfinite() and x.shape == () for x in losses.values())
    grads = gradients(detector, sum(losses.values()))
    head = {key: grad for key, grad in grads.items() if key.startswith("head.")}
    assert head and all(grad is not None and grad.isfinite().all() for grad in head.values())
    has_objects = any(len(x["instances"]) for x in BATCHES[batch])
    # FCOS's smallest level takes objects of some size only.
    assert (storage.latest()["num_pos_anchors"][0] > 0) == has_objects
    if not has_objects:
        rest = [key for key in losses if "cls" not in key]
        assert all(losses[key] == 0 for key in rest)


@pytest.mark.parametrize("name", ["GFL", "ATSS", "DistributionATSS"])
def test_an_object_that_no_anchor_answers_for(name):
    """Too small for any anchor's centre to lie in it: no positives among objects."""
    batch = make_batch([(48, 64)], objects=1)
    batch[0]["instances"].gt_boxes.tensor = torch.tensor([[11.0, 11.0, 13.0, 13.0]])
    detector = build(name)
    losses, storage = step(detector, batch)
    assert storage.latest()["num_pos_anchors"][0] == 0
    assert losses["loss_cls"] > 0 and losses["loss_box_reg"] == 0
    grads = gradients(detector, sum(losses.values()))
    assert all(grad is not None for key, grad in grads.items() if key.startswith("head."))


@pytest.mark.parametrize("name", ["GFL", "ATSS", "DistributionATSS"])
def test_positives_are_logged_by_image(name):
    detector, batch = build(name), make_batch()
    labels = []
    label_anchors = detector.label_anchors
    detector.label_anchors = lambda *args: labels.append(label_anchors(*args)) or labels[0]
    _, storage = step(detector, batch)
    positive = [(x >= 0) & (x < NUM_CLASSES) for x in labels[0][0]]
    assert storage.latest()["num_pos_anchors"][0] == sum(x.sum().item() for x in positive) / 2


@pytest.mark.parametrize("name", ["ATSS", "DistributionATSS"])
def test_an_image_without_positives_counts_as_one(name):
    """In what centerness is divided by."""
    batch = make_batch([(48, 64)] * 2, objects=[2, 0])
    alone, storage = step(build(name), batch[:1])
    both, _ = step(build(name), batch)
    positives = storage.latest()["num_pos_anchors"][0]
    expected = alone["loss_centerness"] * positives / (positives + 1)
    torch.testing.assert_close(both["loss_centerness"], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_maps_are_left_as_they_are(name):
    maps = random_maps(name)
    copies = [[x.clone() for x in level] for level in maps]
    step(build_given(name, maps), make_batch([(48, 64), (40, 60)]))
    for level, copy in zip(maps, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(level, copy, strict=True))


@pytest.mark.parametrize("name", ["GFL", "ATSS", "DistributionATSS"])
def test_half_precision_maps(name):
    """Losses of bf16 maps, as a head gives them under autocast, are those of their values in fp32."""
    maps = [[x.bfloat16() for x in level] for level in random_maps(name)]
    batch = make_batch([(48, 64), (40, 60)])
    found, _ = step(build_given(name, maps), batch)
    expected, _ = step(build_given(name, [[x.float() for x in level] for level in maps]), batch)
    for key, value in expected.items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["GFL", "ATSS", "DistributionATSS"])
def test_under_autocast(name):
    detector = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = step(detector, make_batch())
    expected, _ = step(detector, make_batch())
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=0.05, atol=0.01)
    grads = gradients(detector, sum(losses.values()))
    assert all(grad is not None and grad.isfinite().all() for key, grad in grads.items() if key.startswith("head."))


def test_the_weights_of_the_losses():
    batch = make_batch()
    losses, _ = step(build("GFL"), batch)
    other, _ = step(build("GFL", box_loss_weight=6.0, dfl_loss_weight=0.5, qfl_beta=0.0), batch)
    torch.testing.assert_close(other["loss_box_reg"], 3 * losses["loss_box_reg"])
    torch.testing.assert_close(other["loss_dfl"], 2 * losses["loss_dfl"])
    assert other["loss_cls"] > 1.5 * losses["loss_cls"]  # plain cross entropy

    losses, _ = step(build("ATSS"), batch)
    other, _ = step(build("ATSS", box_loss_weight=6.0, centerness_loss_weight=0.5), batch)
    torch.testing.assert_close(other["loss_box_reg"], 3 * losses["loss_box_reg"])
    torch.testing.assert_close(other["loss_centerness"], 0.5 * losses["loss_centerness"])


def test_the_weights_of_boxes_as_bckds_and_lds_code_have_them():
    """At low scores, as in the beginning of training, their sum stays below the floor of 1."""
    maps, batch = random_maps("GFL"), make_batch([(48, 64), (48, 60)])
    maps[0] = [torch.full_like(x, -6.0).requires_grad_() for x in maps[0]]
    score = torch.tensor(-6.0).sigmoid()
    plain, _ = step(build_given("GFL", maps), batch)
    no_floor, _ = step(build_given("GFL", maps, min_score_sum=1e-6), batch)
    with_offset, _ = step(build_given("GFL", maps, score_weight_offset=2e-4), batch)
    both, _ = step(build_given("GFL", maps, score_weight_offset=2e-4, min_score_sum=1e-6), batch)
    for key in ("loss_box_reg", "loss_dfl"):
        positives = plain[key] / no_floor[key] / score  # the sum of equal scores is what the floor stands for
        assert 2 < positives < 1 / score
        torch.testing.assert_close(positives, positives.round())
        torch.testing.assert_close(with_offset[key], plain[key] * (score + 2e-4) / score)
        torch.testing.assert_close(both[key], no_floor[key])  # equal weights cancel
    assert plain["loss_cls"] == both["loss_cls"]


def test_strides_of_anchors_that_are_not_the_features():
    """Distances and cells are counted in them: boxes would silently be of another size."""
    for name in CLASSES:
        detector = build(name)
        generator = detector.anchor_generator
        if name == "DistributionFCOS":  # makes its own from the backbone
            continue
        generator.strides = [4, 8, 16]
        with pytest.raises(
            ValueError, match=r"anchor_generator.strides are \[4, 8, 16\], but .* strides \[8, 16, 32\]"
        ):
            build(name, anchor_generator=generator)


def test_the_focal_loss():
    """Without its factors (alpha below 0, gamma 0) it is binary cross entropy, by the number of positives."""
    maps, batch = random_maps("ATSS"), make_batch([(48, 64), (48, 60)])
    detector = build_given("ATSS", maps, focal_loss_alpha=-1, focal_loss_gamma=0)
    found, _ = step(detector, batch)
    anchors = detector.anchor_generator([x[:, :1] for x in maps[0]])
    labels = torch.stack(detector.label_anchors(anchors, [x["instances"] for x in batch])[0])
    logits = torch.cat([x.flatten(2).permute(0, 2, 1) for x in maps[0]], dim=1)
    targets = F.one_hot(labels, NUM_CLASSES + 1)[..., :-1].float()
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / (labels < NUM_CLASSES).sum()
    torch.testing.assert_close(found["loss_cls"], expected)
    alpha, _ = step(build_given("ATSS", maps, focal_loss_alpha=1.0, focal_loss_gamma=0), batch)
    rest, _ = step(build_given("ATSS", maps, focal_loss_alpha=0.0, focal_loss_gamma=0), batch)
    torch.testing.assert_close(alpha["loss_cls"] + rest["loss_cls"], expected)
    assert alpha["loss_cls"] != rest["loss_cls"]


def test_the_quality_is_no_gradient_of_the_boxes():
    """The quality focal loss's targets, IoUs of the predicted boxes, are constants to it; so are scores to boxes."""
    maps = random_maps("GFL")
    for level in maps:
        for x in level:
            x.requires_grad_()
    losses, _ = step(build_given("GFL", maps), make_batch([(48, 64), (40, 60)]))
    assert all(
        x is None for x in torch.autograd.grad(losses["loss_cls"], maps[1], allow_unused=True, retain_graph=True)
    )
    rest = losses["loss_box_reg"] + losses["loss_dfl"]
    assert all(x is None for x in torch.autograd.grad(rest, maps[0], allow_unused=True))
