"""Regions read dense outputs by their attributes only; torch is all they need."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from d2kd.regions import REGION_REGISTRY, classification_gap, labelled_locations, main_region, teacher_confidence

# Those of labels and scores; test_boxes.py and test_instances.py have the others.
NAMES = ("all_locations", "positives", "main", "teacher_quality", "gap")
# N, A, K and (H, W) of each level
N, A, K = 2, 3, 4
SIZES = [(4, 5), (1, 1)]


def dense_output(seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(N, A, K, h, w, generator=generator) * 3 for h, w in SIZES]
    logits = [x.requires_grad_(requires_grad) for x in logits]
    centerness = [torch.randn(N, A, h, w, generator=generator) for h, w in SIZES]
    return SimpleNamespace(logits=logits, class_dim=2, centerness=centerness)


def assignment(labels=None):
    generator = torch.Generator().manual_seed(9)
    labels = labels or [torch.randint(-1, K + 1, (N, A, h, w), generator=generator) for h, w in SIZES]
    return SimpleNamespace(labels=labels, positives=[(x >= 0) & (x < K) for x in labels], num_classes=K)


def test_labelled_locations():
    weights = labelled_locations(torch.tensor([[-1, 0], [2, 4]]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == [[0, 1], [1, 1]]


def test_teacher_confidence():
    logits = torch.tensor([[0.0, -1.0, 2.0], [-3.0, -4.0, -5.0]], requires_grad=True)
    weights = teacher_confidence(logits)
    torch.testing.assert_close(weights, torch.tensor([0.880797, 0.047426]), rtol=1e-5, atol=0)
    assert not weights.requires_grad


def test_teacher_confidence_with_centerness():
    logits = torch.tensor([[0.0, -1.0, 2.0], [-3.0, -4.0, -5.0]], requires_grad=True)
    centerness = torch.tensor([0.0, 30.0], requires_grad=True)
    weights = teacher_confidence(logits, centerness=centerness)
    torch.testing.assert_close(weights, torch.tensor([0.440399, 0.047426]).sqrt(), rtol=1e-5, atol=0)
    assert not weights.requires_grad
    half = teacher_confidence(logits.detach().half(), centerness=centerness.detach().half())
    assert half.dtype == torch.float32


def test_classification_gap():
    source = torch.tensor([[0.0, 2.0], [1.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, -2.0], [1.0, 1.0]])
    kept = teacher.clone()
    weights = classification_gap(source, teacher)
    torch.testing.assert_close(weights, torch.tensor([0.880797 - 0.119203, 0.0]), rtol=1e-5, atol=0)
    assert not weights.requires_grad
    assert torch.equal(teacher, kept)  # computed in place, on temporaries of its own
    torch.testing.assert_close(classification_gap(teacher, source), weights)


def test_main_region():
    labels = torch.tensor([0, 1, 2, -1])
    logits = torch.tensor([[0.0, -1.0], [-3.0, -4.0], [5.0, 5.0], [5.0, 5.0]], requires_grad=True)
    weights = main_region(labels, logits, num_classes=2)
    # the largest score of any class, not that of the label
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.047426, 0, 0]), rtol=1e-5, atol=0)
    assert not weights.requires_grad
    by_column = main_region(labels, logits.T, num_classes=2, dim=0)
    assert torch.equal(by_column, weights)


@pytest.mark.parametrize("function", [lambda x, **kw: teacher_confidence(x, **kw),
                                      lambda x, **kw: classification_gap(x, x.flip(0), **kw)])  # fmt: skip
def test_the_class_axis_may_be_any(function):
    logits = torch.randn(2, 3, 4, 5)
    expected = function(logits.movedim(1, -1))
    assert expected.shape == (2, 4, 5)
    assert torch.equal(function(logits, dim=1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_give_fp32_weights_and_are_left_alone(dtype):
    source, teacher = torch.randn(5, 4).to(dtype), torch.randn(5, 4).to(dtype)
    kept = teacher.clone()
    gap = classification_gap(source, teacher)
    torch.testing.assert_close(gap, classification_gap(source.float(), teacher.float()), rtol=0, atol=0)
    torch.testing.assert_close(teacher_confidence(teacher), teacher.float().sigmoid().amax(-1), rtol=0, atol=1e-7)
    main = main_region(torch.zeros(5, dtype=torch.int64), source, num_classes=4)
    torch.testing.assert_close(main, source.float().sigmoid().amax(-1), rtol=0, atol=1e-7)
    assert torch.equal(teacher, kept)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_detached_and_leave_out_ignored_locations(name):
    source, teacher, labels = dense_output(0, requires_grad=True), dense_output(1), assignment()
    weights = REGION_REGISTRY.get(name)(source, teacher, labels)
    assert len(weights) == len(SIZES)
    ignored = 0
    for weight, level_labels in zip(weights, labels.labels, strict=True):
        assert weight.shape == level_labels.shape
        assert weight.dtype == torch.float32 and not weight.requires_grad
        assert ((weight >= 0) & (weight <= 1)).all()
        assert not weight[level_labels == -1].any()
        ignored += (level_labels == -1).sum()
    assert ignored > 0


def test_registered_regions_are_their_functions():
    source, teacher, labels = dense_output(0), dense_output(1), assignment()
    regions = {name: REGION_REGISTRY.get(name)(source, teacher, labels) for name in NAMES}
    for level, level_labels in enumerate(labels.labels):
        valid = level_labels >= 0
        assert torch.equal(regions["all_locations"][level], valid.float())
        assert torch.equal(regions["positives"][level], (valid & (level_labels < K)).float())
        p, q = (x.logits[level].sigmoid() for x in (source, teacher))
        torch.testing.assert_close(regions["teacher_quality"][level], q.amax(2) * valid)
        torch.testing.assert_close(regions["main"][level], p.amax(2) * regions["positives"][level])
        torch.testing.assert_close(regions["gap"][level], (p - q).abs().amax(2) * valid)


@pytest.mark.parametrize("branch", [True, False])
def test_teacher_quality_is_the_score_that_detections_are_ranked_by(branch):
    """With centerness where asked and the teacher has it."""
    source, teacher, labels = dense_output(0), dense_output(1), assignment()
    teacher.centerness = teacher.centerness if branch else None
    source.centerness = None  # not read
    region = REGION_REGISTRY.get("teacher_quality")
    made = {centerness: region(source, teacher, labels, centerness=centerness) for centerness in (True, False)}
    for level, level_labels in enumerate(labels.labels):
        plain = teacher.logits[level].sigmoid().amax(2)
        ranked = (plain * teacher.centerness[level].sigmoid()).sqrt() if branch else plain
        labelled = level_labels >= 0
        assert level or not labelled.all()
        torch.testing.assert_close(made[True][level], ranked * labelled)
        torch.testing.assert_close(made[False][level], plain * labelled)


def test_options():
    region = REGION_REGISTRY.get("teacher_quality")
    with pytest.raises(ValueError, match="^centerness is 1, expected true or false"):
        region(dense_output(0), dense_output(1), assignment(), centerness=1)


@pytest.mark.parametrize("name", ["all_locations", "teacher_quality", "gap"])
def test_where_to_distil_does_not_need_objects(name):
    background = assignment([torch.full((N, A, h, w), K) for h, w in SIZES])
    weights = REGION_REGISTRY.get(name)(dense_output(0), dense_output(1), background)
    assert all((weight > 0).all() for weight in weights)
    for needs_objects in ("positives", "main"):
        nothing = REGION_REGISTRY.get(needs_objects)(dense_output(0), dense_output(1), background)
        assert not any(weight.any() for weight in nothing)


def test_equal_logits_leave_no_gap():
    weights = REGION_REGISTRY.get("gap")(dense_output(0), dense_output(0), assignment())
    assert not any(weight.any() for weight in weights)


def test_losses_and_regions_import_without_detectron2():
    code = "import sys; sys.modules['detectron2'] = None; import d2kd.losses, d2kd.regions; print('imported')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "imported\n"
