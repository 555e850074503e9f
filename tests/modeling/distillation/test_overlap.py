"""Pairs that share some levels and some classes: what they share is compared, and nothing else."""

import logging
from itertools import product

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from detectron2.structures import Boxes, Instances
from torch import nn

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.modeling import DistilledDetector, get_adapter
from d2kd.modeling.distillation.overlap import Overlap, find_overlap
from tests.helpers import (
    FAMILIES,
    LEVELS,
    build_detector,
    distilled,
    flat_assignment,
    gradients,
    make_batch,
    preset,
    reached,
    run_step,
    watched,
)

SOURCES = ("student", "crossed")
METHODS_OF_FAMILIES = [
    *product(["bckd", "crosskd", "tid", "pkd"], FAMILIES),
    *product(["ftpd"], ["RetinaNet", "FCOS", "GFL"]),
    ("ld", "GFL"),  # the one that has distributions here
]


def sums(source):
    """Terms that are plain sums over locations, so that each level's part can be told."""
    kwargs = dict(source=source, normalizer="none", region="everywhere")
    return dict(cls=BinaryClassificationKD(**kwargs), loc=IoULocalizationKD(**kwargs))


def detector(family, seed, levels=LEVELS, **kwargs):
    """Its weights do not depend on ``levels``, nor its predictions for an image on the others of the batch."""
    made = build_detector(family, seed=seed, levels=levels, backbone_norm="FrozenBN", **kwargs)
    for level, scale in zip(levels, getattr(made.head, "scales", None) or ()):
        scale.scale.data.fill_(0.5 + LEVELS.index(level))
    return made


def level_sums(student, teacher, source):
    """name -> what each level adds to the term, and the step's losses."""
    model = distilled(student, teacher, sums(source))
    seen = {}
    for name, loss in model.losses.items():
        loss.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    return seen, run_step(model, make_batch())


# ---- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "ours, theirs, common",
    [(LEVELS, ["p4", "p5"], [1, 2]), (["p4", "p5"], LEVELS, [1, 2]), (LEVELS[:2], LEVELS[1:], [1])],
)
def test_levels_are_matched_by_stride(family, source, ours, theirs, common):
    full, _ = level_sums(detector(family, 0), detector(family, 1), source)
    found, losses = level_sums(detector(family, 0, ours), detector(family, 1, theirs), source)
    for name, value in found.items():
        torch.testing.assert_close(value, full[name][common], rtol=1e-5, atol=1e-6)
        assert losses[f"loss_kd_{name}"].item() == pytest.approx(full[name][common].sum().item(), rel=1e-5)
    # What the student is trained by beside it is as ever.
    alone = run_step(distilled(detector(family, 0, ours)), make_batch())
    assert all(torch.equal(losses[name], value) for name, value in alone.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_the_teachers_levels_are_those_of_its_own_numbers(family):
    """Batch norms that differ from level to level, in a teacher with a finer level than the student's."""

    def teacher():
        made = detector(family, 1, norm="BN")
        norms = [module for module in made.head.modules() if isinstance(module, CycleBatchNormList)]
        assert len(norms) == 4
        for norm in norms:
            for level, of_level in enumerate(norm):
                of_level.running_mean.fill_(0.3 * level)
                of_level.running_var.fill_(0.5 + level)
        return made

    full, _ = level_sums(detector(family, 0), teacher(), "crossed")
    found, _ = level_sums(detector(family, 0, LEVELS[1:]), teacher(), "crossed")
    for name, value in found.items():
        torch.testing.assert_close(value, full[name][1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method, family", METHODS_OF_FAMILIES)
def test_every_method_takes_levels_that_intersect(method, family):
    model = distilled(detector(family, 0, LEVELS[:2]), detector(family, 1, LEVELS[1:]), preset(method, family, tail=1))
    losses = run_step(model, make_batch(objects=4), iteration=500)
    assert all(value.isfinite() for value in losses.values())
    assert any(value > 0 for name, value in losses.items() if name.startswith("loss_kd_"))


def test_labels_of_other_anchors_are_the_teachers_on_all_its_levels():
    """Which level an object belongs to depends on the levels that there are: FCOS's last one takes all large ones."""
    student = detector("FCOS", 0, LEVELS[1:])
    teacher = detector("ATSS", 1)  # one square anchor a cell too, but elsewhere
    model = distilled(student, teacher, dict(cls=BinaryClassificationKD(source="crossed")))
    batch = make_batch()
    with watched("crossed_assignment") as seen:
        run_step(model, batch)
    sizes = [(6, 8), (3, 4), (2, 2)]
    anchors = teacher.anchor_generator([torch.zeros(1, 1, h, w) for h, w in sizes])
    labels, _ = teacher.label_anchors(anchors, [x["instances"] for x in batch])
    expected = flat_assignment(torch.stack(labels), 3, sizes).labels[1:]
    assert len(seen[0].labels) == 2
    assert all(torch.equal(a, b) for a, b in zip(seen[0].labels, expected, strict=True))
    assert sum(x.sum() for x in seen[0].positives) > 0


def test_labels_of_other_anchors_with_classes_of_their_own():
    """The teacher labels the student's objects by its own ids, less those of classes that it does not know."""
    student, teacher = detector("FCOS", 0, num_classes=4), detector("RetinaNet", 1, num_classes=3)
    losses = dict(cls=BinaryClassificationKD(source="crossed"))
    model = DistilledDetector(
        student=student, teacher=dict(model=teacher, class_map={2: 0, 0: 3}, engine="eager"), losses=losses
    )
    batch = make_batch(objects=6)
    for item in batch:
        item["instances"].gt_classes = torch.tensor([0, 1, 2, 3, 3, 0])
    with watched("crossed_assignment") as seen:
        run_step(model, batch)
    anchors = teacher.anchor_generator([torch.zeros(1, 1, h, w) for h, w in ((6, 8), (3, 4), (2, 2))])
    known = [item["instances"][[0, 3, 4, 5]] for item in batch]  # of the student's classes 0 and 3
    for objects in known:
        objects.gt_classes = (objects.gt_classes == 3).long()  # the student's 0 comes first
    teacher.num_classes = 2
    labels, _ = teacher.label_anchors(anchors, known)
    expected = flat_assignment(torch.stack(labels), 2, [(6, 8), (3, 4), (2, 2)])
    assert seen[0].num_classes == 2 and {0, 1} <= set(torch.cat([x.flatten() for x in seen[0].labels]).tolist())
    assert all(torch.equal(a, b) for a, b in zip(seen[0].labels, expected.labels, strict=True))
    assert [x.tolist() for x in seen[0].gt_classes] == [x.gt_classes.tolist() for x in known]


def test_levels_that_are_left_out_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="detectron2.d2kd.modeling.distillation.pairing"):
        distilled(build_detector("FCOS"), build_detector("FCOS", levels=LEVELS[1:]), "crosskd").load_teacher()
    assert "on levels of strides [16, 32]: the student has [8, 16, 32], the teacher [16, 32]" in caplog.text


# ---- classes -----------------------------------------------------------------------------------------------------


def permuted(teacher, order):
    """The same detector with its classes renumbered: its class i is what was class order[i]."""
    for value in (teacher.head.cls_score.weight.data, teacher.head.cls_score.bias.data):
        per_anchor = value.view(-1, teacher.num_classes, *value.shape[1:])
        per_anchor.copy_(per_anchor[:, order].clone())
    return teacher


@pytest.mark.parametrize("method, family", METHODS_OF_FAMILIES)
def test_a_class_map_undoes_a_renumbering(method, family):
    """Teacher id -> student id; with each kernel, each source and each region of these methods."""
    order = [2, 0, 1]
    batch = make_batch(objects=4)
    losses = preset(method, family, tail=1)
    expected = run_step(distilled(detector(family, 0), detector(family, 1), losses), batch, iteration=500)
    teacher = dict(model=permuted(detector(family, 1), order), class_map=dict(enumerate(order)))
    model = DistilledDetector(student=detector(family, 0), teacher=teacher, losses=preset(method, family, tail=1))
    found = run_step(model, batch, iteration=500)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    unmapped = distilled(detector(family, 0), permuted(detector(family, 1), order), preset(method, family, tail=1))
    others = run_step(unmapped, batch, iteration=500)
    label_blind = method in ("pkd", "crosskd")  # and both in the teacher's own classes
    assert label_blind == all((others[k] - v).abs() <= 1e-3 * v.abs() for k, v in expected.items())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_unmapped_classes_take_no_part(family, source):
    """Student's classes 0..3, teacher's 0..4; student's 1 and 3 are the teacher's 4 and 0."""
    student, teacher = detector(family, 0, num_classes=4), detector(family, 1, num_classes=5)
    class_map = {4: 1, 0: 3}
    losses = sums(source) | {
        "gap": BinaryClassificationKD(source=source, region="gap"),
        "main": IoULocalizationKD(source=source, region="main", normalizer="locations"),
    }
    model = DistilledDetector(
        student=student, teacher=dict(model=teacher, class_map=class_map, engine="eager"), losses=losses
    )
    batch = make_batch(objects=4)
    before = run_step(model, batch)
    grads = gradients(model, sum(v for k, v in before.items() if k.startswith("loss_kd_")))
    if source == "student":
        per_class = grads["head.cls_score.weight"].view(-1, 4, *student.head.cls_score.weight.shape[1:])
        assert per_class[:, [1, 3]].abs().sum() > 0 and per_class[:, [0, 2]].abs().sum() == 0
    else:
        assert any(name.startswith("head.cls_subnet") for name in reached(grads))
    # Nor do the classes that the teacher alone knows.
    bias = teacher.head.cls_score.bias.data.view(-1, 5)
    bias[:, [1, 2, 3]] += 5
    after = run_step(model, batch)
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("loss_kd_"))
    bias[:, 4] += 5
    assert run_step(model, batch)["loss_kd_cls"] != before["loss_kd_cls"]


def split_class(teacher, low):
    """The same detector with its class 1 under two ids, 1 and 3, of which one (1: ``low``) scores nothing."""
    head, num_anchors = teacher.head, teacher.head.cls_score.out_channels // teacher.num_classes
    old = head.cls_score
    new = nn.Conv2d(old.in_channels, num_anchors * 4, 3, padding=1)
    for name in ("weight", "bias"):
        value = getattr(old, name).data.unflatten(0, (num_anchors, 3))
        value = torch.cat([value, value[:, 1:2]], dim=1).clone()
        if name == "bias":
            value[:, 1 if low else 3] -= 100
        getattr(new, name).data.copy_(value.flatten(0, 1))
    head.cls_score, teacher.num_classes = new, 4
    if hasattr(head, "num_classes"):
        head.num_classes = 4
    return teacher


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("method, family", METHODS_OF_FAMILIES)
def test_classes_that_are_merged(method, family, low):
    """
    A teacher that has the student's class 1 as two, one of which it never sees: merged they are the class that it was,
    whichever comes first, for each kernel, source and region of these methods.
    """
    batch = make_batch(objects=4)
    expected = run_step(
        distilled(detector(family, 0), detector(family, 1), preset(method, family, tail=1)), batch, iteration=500
    )
    class_map = {0: 0, 1: 1, 2: 2, 3: 1}
    teacher = dict(model=split_class(detector(family, 1), low), class_map=class_map, engine="eager")
    model = DistilledDetector(student=detector(family, 0), teacher=teacher, losses=preset(method, family, tail=1))
    found = run_step(model, batch, iteration=500)
    assert model.overlap.teacher_classes == ((0,), (1, 3), (2,))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_classes_with_other_anchors(family):
    """The crossed assignment: objects of the merged class are labelled as such by the teacher."""
    ours = "FCOS" if family != "FCOS" else "RetinaNet"
    losses = [
        run_step(
            DistilledDetector(student=detector(ours, 0), teacher=teacher, losses=preset("crosskd", family, tail=1)),
            make_batch(objects=4),
        )
        for teacher in (
            dict(model=detector(family, 1), engine="eager"),
            dict(model=split_class(detector(family, 1), True), class_map={3: 1, 1: 1, 0: 0, 2: 2}, engine="eager"),
        )
    ]
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-4, atol=1e-6)


def output_of(family, num_classes=5):
    made = build_detector(family, num_classes=num_classes)
    features = [torch.randn(2, 8, h, w) for h, w in ((6, 8), (3, 4), (2, 2))]
    predictions = made.head(features)
    return get_adapter(made).dense_output(made, predictions, made.anchor_generator(features))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logit_of_merged_classes_is_the_largest(family):
    output = output_of(family)
    groups = ((1, 4), (3,), (0, 2, 1))
    found = output.merge_classes(groups)
    for x, merged in zip(output.logits, found.logits, strict=True):
        expected = torch.stack([x[:, :, list(ids)].amax(2) for ids in groups], dim=2)
        assert torch.equal(merged, expected)
    # The gradient is that of the largest, and reaches it once.
    (gradient,) = torch.autograd.grad(found.logits[0].sum(), output.logits[0])
    expected = torch.zeros_like(gradient)
    for ids in groups:
        best = output.logits[0][:, :, list(ids)].argmax(2, keepdim=True)
        index = torch.tensor(ids)[best]
        expected.scatter_add_(2, index, torch.ones_like(index, dtype=expected.dtype))
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_merging_no_class_map_is_copied(family):
    output = output_of(family)
    assert output.merge_classes(None) is output
    some = output.merge_classes(((1,), (2,), (3,)))
    assert all(a.data_ptr() == b[:, :, 1:].data_ptr() for a, b in zip(some.logits, output.logits, strict=True))


def test_objects_of_unmapped_classes_are_background():
    labels = torch.tensor([[0, 1, 2, 3, 4, -1]])
    assignment = flat_assignment(labels, 4, [(2, 3)])  # 4 is background
    assignment.gt_boxes, assignment.gt_classes = [torch.arange(16.0).view(4, 4)], [torch.tensor([3, 0, 1, 2])]
    some = assignment.with_classes((3, 1), [torch.tensor([0, 2])])
    assert some.labels[0].flatten().tolist() == [2, 1, 2, 0, 2, -1] and some.num_classes == 2
    assert some.positives[0].flatten().tolist() == [False, True, False, True, False, False]
    assert some.gt_classes[0].tolist() == [0, 1]
    assert torch.equal(some.gt_boxes[0], assignment.gt_boxes[0][[0, 2]])
    assert assignment.with_classes(None) is assignment


def test_objects_get_the_teachers_class_ids():
    objects = Instances((9, 9), gt_boxes=Boxes(torch.arange(16.0).view(4, 4)), gt_classes=torch.tensor([3, 0, 1, 3]))
    overlap = Overlap((0,), (0,), student_classes=(1, 3), teacher_classes=((4, 5), (0,)), anchor_difference=None)
    common = overlap.common_objects([objects.gt_classes, objects.gt_classes[:0]], torch.device("cpu"))
    assert common is not None and [x.tolist() for x in common] == [[0, 2, 3], []]
    found = overlap.in_teacher_classes([objects, objects[:0]], common)
    assert found[0].gt_classes.tolist() == [0, 4, 0] and len(found[1]) == 0
    assert torch.equal(found[0].gt_boxes.tensor, objects.gt_boxes.tensor[[0, 2, 3]])
    assert objects.gt_classes.tolist() == [3, 0, 1, 3]  # the batch is the student's, too


@pytest.mark.parametrize(
    "class_map, error, parts",
    [
        ({}, ValueError, ["class_map is empty"]),
        ([0, 1], TypeError, ["class_map is [0, 1]", "mapping of teacher ids to student ids"]),
        ({5: 0}, ValueError, ["5: 0", "teacher's classes are the whole numbers from 0 to 4"]),
        ({0: 4}, ValueError, ["0: 4", "student's classes are the whole numbers from 0 to 3"]),
        ({"cat": 0}, ValueError, ["'cat': 0"]),
        ({True: 0}, ValueError, ["True: 0"]),
    ],
)
def test_a_class_map_that_does_not_fit_is_refused(class_map, error, parts):
    student, teacher = build_detector("FCOS", num_classes=4), build_detector("FCOS", num_classes=5)
    model = DistilledDetector(
        student=student, teacher=dict(model=teacher, class_map=class_map, engine="eager"), losses=sums("student")
    )
    with pytest.raises(error) as refusal:
        model.load_teacher()
    assert all(part in str(refusal.value) for part in ["model.teacher.class_map", *parts])


def test_a_map_of_all_classes_onto_themselves_is_none():
    student, teacher = build_detector("FCOS"), build_detector("FCOS", seed=1)
    assert find_overlap(student, teacher, {0: 0, 1: 1, 2: 2}) == find_overlap(student, teacher)
    assert find_overlap(student, teacher, {0: 0, 1: 1}).student_classes == (0, 1)


@pytest.mark.parametrize("ours, theirs", [(3, 5), (5, 3)])
def test_the_same_ids_of_detectors_with_more_classes_are_a_map(ours, theirs):
    """Not the same classes: what one detector alone has takes no part."""
    student, teacher = (build_detector("FCOS", seed=i, num_classes=n) for i, n in enumerate((ours, theirs)))
    overlap = find_overlap(student, teacher, {0: 0, 1: 1, 2: 2})
    assert overlap.student_classes == overlap.first_teacher_classes == (0, 1, 2)
    node = dict(model=teacher, class_map={0: 0, 1: 1, 2: 2}, engine="eager")
    model = DistilledDetector(student=student, teacher=node, losses=sums("crossed"))
    seen = []
    model.losses["cls"].register_forward_pre_hook(lambda m, args: seen.append(args[:2]))
    losses = run_step(model, make_batch())
    assert all(x.shape[2] == 3 for output in seen[0] for x in output.logits)
    assert all(value.isfinite() for value in losses.values())


def test_neighbouring_classes_are_views():
    output = distilled(build_detector("FCOS"), build_detector("FCOS"), sums("student"))
    seen = []
    output.losses["cls"].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    run_step(output, make_batch())
    some = seen[0].with_classes((1, 2))
    assert all(a.shape[2] == 2 and a.data_ptr() == b[:, :, 1:].data_ptr() for a, b in zip(some.logits, seen[0].logits))
    swapped = seen[0].with_classes((2, 0))
    assert all(torch.equal(a, b[:, :, [2, 0]]) for a, b in zip(swapped.logits, seen[0].logits))
