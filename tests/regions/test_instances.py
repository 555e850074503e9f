"""General instances: against a whole run of non-maximum suppression, image by image."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import nms

from d2kd.regions import REGION_REGISTRY, general_instance_region

N, R, K = 3, 60, 4


def predictions(seed=0, num=R):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(N, num, K, generator=generator) * 2 for _ in range(2)]
    boxes = []
    for _ in range(2):
        corners = 50 * torch.rand(N, num, 2, generator=generator)
        boxes.append(torch.cat([corners, corners + 5 + 30 * torch.rand(N, num, 2, generator=generator)], dim=-1))
    return *logits, *boxes


def by_suppression(source, teacher, source_boxes, teacher_boxes, valid, topk, nms_threshold):
    """One image, location by location, with torchvision's suppression."""
    p, q = source.sigmoid().tolist(), teacher.sigmoid().tolist()
    scores, boxes = [], []
    for n in range(len(p)):
        gaps = [abs(t - s) for s, t in zip(p[n], q[n], strict=True)]
        k = gaps.index(max(gaps))
        scores.append(gaps[k])
        boxes.append(teacher_boxes[n] if q[n][k] > p[n][k] else source_boxes[n])
    kept = torch.nonzero(valid).flatten()
    left = nms(torch.stack(boxes)[kept], torch.tensor(scores)[kept], nms_threshold)[:topk]
    return sorted(kept[left].tolist())


@pytest.mark.parametrize("topk, nms_threshold", [(10, 0.3), (3, 0.3), (100, 0.3), (10, 0), (10, 0.7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_suppression_leaves_of_the_largest_gaps(seed, topk, nms_threshold):
    inputs = predictions(seed)
    valid = torch.rand(N, R) > 0.2
    options = dict(topk=topk, nms_threshold=nms_threshold)
    region = general_instance_region(*inputs, valid=valid, **options)
    assert region.shape == (N, R) and region.dtype == torch.float32
    for n in range(N):
        expected = by_suppression(*(x[n] for x in inputs), valid[n], **options)
        assert region[n].nonzero().flatten().tolist() == expected
        assert 0 < len(expected) <= topk
        assert region[n].sum() == len(expected)


def test_the_box_is_that_of_the_higher_score():
    # On location 0 the teacher leads, on location 1 the student; location 2's box is on one of the two.
    source, teacher = torch.tensor([[[0.0], [6.0], [0.0]]]), torch.tensor([[[6.0], [0.0], [1.0]]])
    here, there = [0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]
    boxes = torch.tensor([[here, here, here]]), torch.tensor([[there, there, here]])
    assert general_instance_region(source, teacher, *boxes).tolist() == [[1, 1, 0]]  # there, here and here
    assert general_instance_region(teacher, source, *boxes).tolist() == [[1, 1, 0]]  # here, there and here
    boxes = torch.tensor([[here, there, here]]), torch.tensor([[there, here, here]])
    assert general_instance_region(source, teacher, *boxes, topk=3).tolist() == [[1, 0, 1]]  # there, there and here
    # where both give the same, the student's: here, there and here
    assert general_instance_region(source, source, *boxes[:1], boxes[1] + 100).sum() == 2
    assert general_instance_region(teacher, source, *boxes, topk=1).tolist() == [[1, 0, 0]]


def test_nothing_to_take():
    inputs = predictions()
    assert not general_instance_region(*inputs, valid=torch.zeros(N, R, dtype=torch.bool)).any()
    few = [x[:, :4] for x in inputs]
    assert general_instance_region(*few, topk=100, nms_threshold=0.99).sum() == 4 * N


def test_boxes_without_area_and_predictions_that_are_not_finite():
    logits, boxes = predictions()[:2], torch.zeros(N, R, 4)
    assert (general_instance_region(*logits, boxes, boxes).sum(1) == 10).all()
    region = general_instance_region(logits[0] * float("nan"), logits[1], boxes, boxes)
    assert region.isfinite().all()


def test_the_class_axis_may_be_any():
    source, teacher, *boxes = predictions()
    expected = general_instance_region(source, teacher, *boxes)
    assert torch.equal(general_instance_region(source.mT, teacher.mT, *boxes, dim=1), expected)


# A anchors a cell and (H, W) of each level
A, SIZES = 2, [(5, 6), (2, 3), (1, 1)]


def dense_output(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(N, A, K, h, w, generator=generator).requires_grad_() for h, w in SIZES]
    boxes = []
    for level, (h, w) in enumerate(SIZES):
        low = 30 * torch.rand(N, A, h, w, 2, generator=generator)
        size = (level + 1) * 10 * torch.rand(N, A, h, w, 2, generator=generator)
        boxes.append(torch.cat([low, low + size], dim=-1).requires_grad_())
    return SimpleNamespace(logits=logits, class_dim=2, boxes=boxes)


@pytest.mark.parametrize("options", [{}, dict(topk=2, nms_threshold=0.1)])
def test_each_image_and_level_of_a_batch(options):
    source, teacher = dense_output(0), dense_output(1)
    valid = [torch.rand(N, A, h, w) > 0.2 for h, w in SIZES]
    region = REGION_REGISTRY.get("general_instances")(source, teacher, SimpleNamespace(valid=valid), **options)
    assert len(region) == len(SIZES)
    for level, (weights, size) in enumerate(zip(region, SIZES, strict=True)):
        assert weights.shape == (N, A, *size) and weights.dtype == torch.float32 and not weights.requires_grad
        for n in range(N):
            logits = [x.logits[level][n].detach().movedim(1, -1).flatten(0, 2) for x in (source, teacher)]
            boxes = [x.boxes[level][n].detach().flatten(0, 2) for x in (source, teacher)]
            expected = by_suppression(
                *logits, *boxes, valid[level][n].flatten(), **{**dict(topk=10, nms_threshold=0.3), **options}
            )
            assert weights[n].flatten().nonzero().flatten().tolist() == expected


@pytest.mark.parametrize(
    "option, values, expected",
    [
        ("topk", [0, 2.5, True], "a whole number of at least 1"),
        ("nms_threshold", [1, -0.1, None], r"a number in \[0, 1\)"),
    ],
)
def test_options(option, values, expected):
    region = REGION_REGISTRY.get("general_instances")
    assert inspect.signature(region).parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
    source, teacher = dense_output(0), dense_output(1)
    teacher.boxes = [torch.zeros(N, A, h, w, 4) for h, w in SIZES]
    assignment = SimpleNamespace(valid=[torch.ones(N, A, h, w, dtype=torch.bool) for h, w in SIZES])
    for value in values:
        with pytest.raises(ValueError, match=f"^{option} is .*{expected}"):
            region(source, teacher, assignment, **{option: value})
