"""The pieces of the training losses: distribution focal loss, expected distances, reading of the head's maps."""

import io
import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch.nn import functional as F

from d2kd.modeling.detectors import expected_distances
from d2kd.modeling.detectors.detection_losses import LevelLabels, centerness_targets, distribution_focal_loss
from tests.modeling.distillation.golden_scene import load_golden

PRECISIONS = [
    ("f64", torch.float64, dict(rtol=1e-12, atol=1e-12)),
    ("f32", torch.float32, dict(rtol=2e-5, atol=1e-6)),
]


@pytest.fixture(scope="module")
def golden():
    return load_golden("01_losses_dfl.npz")


@pytest.mark.parametrize("suffix, dtype, tolerance", PRECISIONS)
def test_distribution_focal_loss_against_the_reference(golden, suffix, dtype, tolerance):
    logits = golden["dfl_pred"].to(dtype).requires_grad_()
    loss = 0.25 * distribution_focal_loss(logits, golden["dfl_label"].to(dtype))
    torch.testing.assert_close(loss, golden[f"dfl_none__out_{suffix}"], **tolerance)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad, golden[f"dfl_none__grad_{suffix}"], **tolerance)


def test_distribution_focal_loss_of_the_closed_form():
    logits = 2 * torch.sin(0.3 * torch.arange(17))
    loss = distribution_focal_loss(logits, torch.tensor(3.25))
    assert loss.item() == pytest.approx(2.19867134, rel=2e-7)  # theirs is in fp32


def test_distribution_focal_loss_at_a_bin_is_cross_entropy():
    logits = torch.randn(8, 9)
    targets = torch.arange(8)
    torch.testing.assert_close(
        distribution_focal_loss(logits, targets.float()), F.cross_entropy(logits, targets, reduction="none")
    )


def test_distribution_focal_loss_clamps_targets_as_the_reference(golden):
    distances, clamped = golden["bbox2distance_nomax__out_f64"], golden["bbox2distance_max16__out_f64"]
    assert (distances != clamped).any()
    logits = torch.randn(*distances.shape, 17, dtype=torch.float64)
    torch.testing.assert_close(
        distribution_focal_loss(logits, distances), distribution_focal_loss(logits, clamped), rtol=1e-12, atol=0
    )
    assert distribution_focal_loss(logits[0, 0], torch.tensor(1e9)).isfinite()


def test_distribution_focal_loss_is_least_where_the_mean_is_the_target():
    """Two bins at the target's nearness have it as their mean and the least loss."""
    y = 2.3
    best = torch.full((6,), -1e4, dtype=torch.float64)
    best[2], best[3] = math.log(0.7), math.log(0.3)
    best.requires_grad_()
    loss = distribution_focal_loss(best, torch.tensor(y, dtype=torch.float64))
    (grad,) = torch.autograd.grad(loss, best)
    assert expected_distances(best.detach()).item() == pytest.approx(y, abs=1e-12)
    assert grad.abs().max() < 1e-12


@pytest.mark.parametrize("suffix, dtype, tolerance", PRECISIONS)
def test_expected_distances_against_the_reference(golden, suffix, dtype, tolerance):
    logits = golden["integral_in"].to(dtype).requires_grad_()
    found = expected_distances(logits.unflatten(1, (4, 17)))
    torch.testing.assert_close(found, golden[f"integral__out_{suffix}"], **tolerance)
    (grad,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(grad, golden[f"integral__grad_{suffix}"], **tolerance)


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_expected_distances_along_any_axis(dim):
    logits = torch.randn(4, 3, 5, 2, dtype=torch.float64, requires_grad=True)
    bins = torch.arange(logits.shape[dim], dtype=torch.float64)
    expected = logits.softmax(dim).movedim(dim, -1) @ bins
    torch.testing.assert_close(expected_distances(logits, dim=dim), expected)
    torch.testing.assert_close(expected_distances(logits.detach(), dim=dim), expected.detach())
    assert torch.autograd.gradcheck(lambda x: expected_distances(x, dim=dim), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_expected_distances_of_half_precision(dtype):
    logits = (5 * torch.randn(7, 17)).to(dtype).requires_grad_()
    found = expected_distances(logits)
    torch.testing.assert_close(found, expected_distances(logits.float()))
    assert found.dtype == torch.float32
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert grad.dtype == dtype


def test_expected_distances_keeps_no_map_but_its_input():
    logits = torch.randn(2, 3, 17, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        expected_distances(logits * 1, dim=2)
    maps = {x.data_ptr() for x in kept if x.numel() >= logits.numel()}
    assert len(maps) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_expected_distances_in_an_exported_trace():
    """Traced with gradients on; the autograd function could not be saved."""
    logits = torch.randn(2, 5, 3, requires_grad=True)
    traced = torch.jit.trace(lambda x: expected_distances(x, dim=1), logits)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    other = torch.randn(2, 5, 3)
    torch.testing.assert_close(torch.jit.load(file)(other), expected_distances(other, dim=1))


def test_decoding_of_distances_against_the_reference(golden):
    """Of points inside their boxes: Detectron2's linear transform has a ReLU."""
    points, distances = golden["coding_points"], golden["coding_distance"]
    inside = (distances >= 0).all(dim=1)
    assert inside.sum() >= 10
    boxes = torch.cat([points - 3, points + 3], dim=1)
    found = Box2BoxTransformLinear(normalize_by_size=False).apply_deltas(distances, boxes)
    torch.testing.assert_close(found[inside], golden["distance2bbox__out_f64"][inside], rtol=1e-12, atol=1e-12)


def test_centerness_targets():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]]).expand(3, 4)
    centers = torch.tensor([[5.0, 10.0], [2.0, 10.0], [9.0, 5.0]])
    anchors = torch.cat([centers - 4, centers + 4], dim=1)
    expected = torch.tensor([1.0, math.sqrt(2 / 8), math.sqrt(1 / 9 * 5 / 15)])
    torch.testing.assert_close(centerness_targets(anchors, boxes), expected)
    assert centerness_targets(anchors[:0], boxes[:0]).shape == (0,)


def test_labels_over_maps():
    """Two anchors a cell: what is gathered from maps is what stands at the positives of the flat order."""
    sizes, num_classes = [(2, 3), (1, 2), (1, 1)], 3
    flat = torch.randint(-1, num_classes + 1, (2, 18))
    flat[:, -2:] = num_classes  # a level without positives
    maps = [torch.randn(2, 2, num_classes, h, w) for h, w in sizes]
    in_order = torch.cat([x.permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps], dim=1)  # (N, R, K)
    labels = LevelLabels(list(flat), maps, num_classes)

    positive = (flat >= 0) & (flat < num_classes)
    assert labels.per_image.tolist() == positive.sum(1).tolist()
    levels = [x.sum().item() for x in positive.split([12, 4, 2], dim=1)]
    assert labels.per_level == levels and levels[-1] == 0 < min(levels[:2])

    where = [(i, j) for start, end in ((0, 12), (12, 16)) for i in range(2) for j in range(start, end)]
    where = [(i, j) for i, j in where if positive[i, j]]
    expected = torch.stack([in_order[i, j] for i, j in where])
    assert torch.equal(labels.gather(maps), expected)
    assert torch.equal(labels.gather_flat(in_order), expected)
    assert labels.classes.tolist() == [flat[i, j].item() for i, j in where]

    values = torch.rand(len(where))
    expected = torch.zeros(2, 18, num_classes)
    for (i, j), value in zip(where, values, strict=True):
        expected[i, j, flat[i, j]] = value
    targets = labels.class_targets(maps, values)
    found = torch.cat([x.permute(0, 3, 4, 1, 2).flatten(1, 3) for x in targets], dim=1)
    assert torch.equal(found, expected)
    labelled = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in labels.labelled], dim=1)
    assert torch.equal(labelled, (flat >= 0).float())


def test_class_targets_have_the_layout_of_the_logits():
    logits = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last).unflatten(1, (2, 3))
    labels = LevelLabels([torch.full((40,), 3)] * 2, [logits], 3)
    (targets,) = labels.class_targets([logits.half()], torch.zeros(0))
    assert targets.stride() == logits.stride() and targets.dtype == torch.float32
