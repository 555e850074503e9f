"""What must agree between student, teacher and loss, and the sentence that says so."""

import logging
import re

import pytest
from detectron2.config import instantiate
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from d2kd.losses import (
    BinaryClassificationKD,
    FeatureImitation,
    IoULocalizationKD,
    SoftmaxClassificationKD,
    TaskIntegrationKD,
)
from d2kd.methods import METHODS, get_losses
from d2kd.modeling import DistilledDetector
from tests.helpers import build_backbone, build_detector, distilled, make_batch, make_losses, preset, run_step


def refused(student, teacher, losses, *parts):
    """The pair is refused, twice (a first refusal must not let it pass), by a message with all ``parts``."""
    model = distilled(student, teacher, losses)
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            model.load_teacher()
        for part in parts:
            assert part in str(error.value)
    with pytest.raises(ValueError, match=re.escape(parts[0])):
        run_step(model, make_batch())


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
def test_classes(method):
    refused(
        build_detector("FCOS"), build_detector("FCOS", num_classes=5), method,
        "3 classes and the teacher 5", "model.student.num_classes", "model.teacher.model.num_classes",
        "model.teacher.class_map",
    )  # fmt: skip


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
def test_strides(method):
    """Levels that only one has are left out, see test_overlap.py; there must be one that both have."""
    student, teacher = build_detector("FCOS", levels=["p3"]), build_detector("FCOS", levels=["p4", "p5"])
    refused(
        student, teacher, method,
        "strides [8] and the teacher [16, 32]", "model.student.head_in_features",
        "model.teacher.model.head_in_features",
    )  # fmt: skip


@pytest.mark.parametrize(
    "sizes, values",
    [
        # The second anchor of the first cell, whose centre is (8, 8): 24 and 25 pixels wide.
        (((8, 12), (16, 25), (32, 48)), "[-4.0, -4.0, 20.0, 20.0] and [-4.5, -4.5, 20.5, 20.5] on level 1"),
        (((8,), (16,), (32,)), "2 and 1 a cell of level 0"),
    ],
)
def test_anchors_for_own_predictions_only(sizes, values):
    student, teacher = build_detector("RetinaNet"), build_detector("RetinaNet", sizes=sizes)
    refused(
        student, teacher, dict(loc=IoULocalizationKD(region="all_locations")),
        values, "model.losses.loc", "model.student.anchor_generator", "source='crossed'",
    )  # fmt: skip
    if len(sizes[0]) == 2:  # the teacher's head predicts two anchors a cell
        run_step(distilled(build_detector("RetinaNet"), teacher, "crosskd"), make_batch())


@pytest.mark.parametrize("tail", [0, 1])
def test_widths_at_the_tap(tail):
    # The teacher's tower narrows in its last block: after it 4 channels, before it 8.
    student, teacher = build_detector("FCOS", conv_dims=(8, 8)), build_detector("FCOS", conv_dims=(8, 4))
    losses = make_losses("crosskd", tail=tail)
    if tail == 1:
        run_step(distilled(student, teacher, losses), make_batch())
        student, teacher = build_detector("FCOS", conv_dims=(4, 8)), build_detector("FCOS", conv_dims=(8, 8))
        ours, theirs = 4, 8
    else:
        ours, theirs = 8, 4
    refused(
        student, teacher, losses, f"student's {ours} channels of the 'cls' tower", f"which takes {theirs} there",
        f"model.losses.crosskd_cls (tail={tail})", "model.student.head.conv_dims",
    )  # fmt: skip


def test_widths_that_one_pair_cannot_fit():
    """Not a circle of advice: what tail 2 needs, tail 1 refuses."""
    losses = dict(
        a=BinaryClassificationKD(source="crossed", tail=2), b=BinaryClassificationKD(source="crossed", tail=1)
    )
    for channels in (None, [8, 12], [8, 8]):
        model = DistilledDetector(
            student=build_detector("FCOS"),
            teacher=dict(model=build_detector("FCOS", fpn=12)),
            losses=losses,
            tap_projector_channels=channels,
        )
        with pytest.raises(ValueError, match=r"One pair of widths must fit all .* have \[8, 8\] and \[8, 12\]"):
            model.load_teacher()


def test_box_codings_of_the_heads_own_numbers():
    teacher = build_detector("RetinaNet", seed=1)
    teacher.box2box_transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    refused(
        build_detector("RetinaNet"), teacher, preset("ftpd", "RetinaNet"), "model.losses.ftpd_dlt",
        "Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))", "Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))",
        "model.student.box2box_transform", "IoULocalizationKD",
    )  # fmt: skip
    run_step(distilled(build_detector("RetinaNet"), teacher, "bckd"), make_batch())  # decoded boxes


def test_squares():
    student, teacher = build_detector("FCOS", square_pad=96), build_detector("FCOS", seed=1, square_pad=64)
    refused(student, teacher, "bckd", "squares of 96 pixels and the teacher to squares of 64", "backbone.square_pad")


def test_a_teacher_with_the_students_parameters():
    student = build_detector("FCOS")
    refused(student, student, "bckd", "share", "frozen", "model.teacher.model", "copy.deepcopy")
    teacher = build_detector("FCOS", seed=1)
    teacher.backbone = build_detector("FCOS").backbone
    run_step(distilled(build_detector("FCOS"), teacher, "bckd"), make_batch())


def test_widths_at_the_heads_input():
    student, teacher = build_detector("FCOS", fpn=4), build_detector("FCOS", fpn=8)
    refused(
        student, teacher, make_losses("crosskd", tail=2), "student's 4 channels", "takes 8 there", "out_channels"
    )  # fmt: skip
    run_step(distilled(build_detector("FCOS", fpn=4), teacher, make_losses("crosskd", tail=1)), make_batch())


@pytest.mark.parametrize("depths", [(2, 3), (3, 2)])
def test_a_tail_longer_than_a_tower(depths):
    student, teacher = (build_detector("FCOS", conv_dims=[8] * depth) for depth in depths)
    refused(
        student,
        teacher,
        make_losses("crosskd", tail=3),
        "model.losses.crosskd_cls has tail=3",
        "has 2 blocks",
        "crosskd_cls.tail to 2 or less",
    )


def test_a_square_teacher_canvas_that_is_too_small():
    student, teacher = build_detector("FCOS"), build_detector("FCOS", square_pad=32)
    with pytest.raises(ValueError, match="squares of 32 pixels, but the student's canvas is 48x64"):
        run_step(distilled(student, teacher, "bckd"), make_batch())


def stacked(direct_weight=1.0, source="student", task=BinaryClassificationKD):
    return dict(direct=BinaryClassificationKD(source=source, weight=direct_weight), crossed=task(source="crossed"))


def test_direct_and_crossed_terms_on_one_branch_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, logger="d2kd"):
        distilled(build_detector("FCOS"), build_detector("FCOS"), stacked())
    (record,) = caplog.records
    assert "direct (source 'student') and crossed (source 'crossed') both train the 'cls' branch" in record.message


def warnings_of(caplog, *methods):
    caplog.clear()
    losses = {k: instantiate(v) for method in methods for k, v in get_losses(method, "GFL").items()}
    with caplog.at_level(logging.WARNING, logger="d2kd"):
        distilled(build_detector("GFL"), build_detector("GFL", seed=1), losses)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("method", METHODS)
def test_no_method_warns_of_itself(caplog, method):
    assert warnings_of(caplog, method) == []


def test_two_kernels_on_the_same_class_scores_are_warned_of(caplog):
    (bckd_and_ld,) = warnings_of(caplog, "bckd", "ld")
    # Not ld_vlr_kd, which is off.
    assert bckd_and_ld.startswith("bckd_cls (BinaryClassificationKD), ld_main_kd (SoftmaxClassificationKD) all compare")
    (bckd_and_ftpd,) = warnings_of(caplog, "bckd", "ftpd")
    assert bckd_and_ftpd.startswith("bckd_cls (BinaryClassificationKD), ftpd_cls (TemperatureFreeClassificationKD) all")
    assert warnings_of(caplog, "ld", "tid") == []


@pytest.mark.parametrize("losses", [stacked(0.0), stacked(source="crossed"), stacked(task=IoULocalizationKD)])
def test_other_mixtures_are_not(caplog, losses):
    with caplog.at_level(logging.WARNING, logger="d2kd"):
        distilled(build_detector("FCOS"), build_detector("FCOS"), losses)
    assert not caplog.records


def test_a_mixture_of_methods_runs():
    losses = {**make_losses("bckd"), **make_losses("crosskd")}
    found = run_step(distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), losses), make_batch())
    assert all(found[f"loss_kd_{name}"].item() > 0 for name in losses)


def test_a_head_without_towers_can_teach_by_its_predictions():
    """Only crossed terms look into heads."""
    teacher = build_detector("RetinaNet", seed=1)
    head = teacher.head
    expected = run_step(distilled(build_detector("RetinaNet"), teacher, "bckd"), make_batch())
    head.a, head.b = head.cls_subnet, head.bbox_subnet
    del head.cls_subnet, head.bbox_subnet
    head.forward = lambda features: (
        [head.cls_score(head.a(x)) for x in features], [head.bbox_pred(head.b(x)) for x in features]
    )  # fmt: skip
    found = run_step(distilled(build_detector("RetinaNet"), teacher, "bckd"), make_batch())
    assert all(found[name].equal(value) for name, value in expected.items())


def test_losses_need_a_teacher_and_must_be_losses():
    with pytest.raises(ValueError, match="model.losses has bckd_cls, bckd_loc but model.teacher is null"):
        distilled(build_detector("FCOS"), None, "bckd")
    with pytest.raises(TypeError, match="model.losses.wrong is a FPN, expected a DistillationLoss"):
        distilled(build_detector("FCOS"), build_detector("FCOS"), dict(wrong=build_backbone()))


@pytest.mark.parametrize("name", ["keys", "a.b"])
def test_a_name_that_no_module_can_have(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot name a loss"):
        distilled(build_detector("FCOS"), build_detector("FCOS"), {name: BinaryClassificationKD()})


class ScaledHead(RetinaNetHead):
    """Does more than its children: what an adapter that knows only them would miss."""

    def forward(self, features):
        logits, deltas = super().forward(features)
        return [3 * x for x in logits], [2 * x for x in deltas]


def test_a_teacher_whose_head_does_more_than_its_adapter_says():
    teacher = build_detector("RetinaNet")
    teacher.head.__class__ = ScaledHead
    refused(
        build_detector("RetinaNet"), teacher, "crosskd",
        "model.losses.crosskd_cls crosses heads", "ScaledHead.forward does more", "source='student'",
    )  # fmt: skip
    run_step(distilled(build_detector("RetinaNet"), teacher, "bckd"), make_batch())  # reads its predictions only
    student = build_detector("RetinaNet")
    student.head.__class__ = ScaledHead
    run_step(distilled(student, build_detector("RetinaNet"), "crosskd"), make_batch())  # only its taps are crossed


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_crossing_a_head_without_the_towers_that_its_adapter_knows(who):
    detectors = dict(student=build_detector("RetinaNet"), teacher=build_detector("RetinaNet"))
    head = detectors[who].head
    head.tower = head.cls_subnet
    del head.cls_subnet
    with pytest.raises(TypeError, match="RetinaNetHead has no cls_subnet, .* register an Adapter"):
        distilled(detectors["student"], detectors["teacher"], "crosskd").load_teacher()


@pytest.mark.parametrize("method", ["pkd", "cwd"])
def test_features_of_detectors_with_other_anchors_can_be_compared(method):
    pair = build_detector("RetinaNet"), build_detector("FCOS", seed=1)
    found = run_step(distilled(*pair, preset(method, "RetinaNet")), make_batch())
    assert found[f"loss_kd_{method}"].item() > 0
    both = {**preset(method, "RetinaNet"), "crossed": BinaryClassificationKD(source="crossed")}
    assert run_step(distilled(*pair, both), make_batch())["loss_kd_crossed"].item() > 0


def test_a_region_that_reads_the_teachers_locations_needs_its_anchors():
    pair = build_detector("RetinaNet"), build_detector("FCOS", seed=1)
    for loss in (TaskIntegrationKD(), FeatureImitation(region="teacher_quality")):
        with pytest.raises(ValueError, match="losses.f .*different anchors.*or use region='everywhere'"):
            run_step(distilled(*pair, {"f": loss}), make_batch())


@pytest.mark.parametrize("source", ["student", "crossed"])
def test_losses_are_told_of_the_common_classes_alone(caplog, source):
    """One of three: with it, a softmax over classes is 1 whatever they say."""
    student, teacher = build_detector("FCOS"), build_detector("FCOS", seed=1)
    for class_map, number in ((None, 0), ({0: 2, 1: 1}, 0), ({1: 2}, 1)):
        caplog.clear()
        losses = dict(kd=SoftmaxClassificationKD(source=source))
        node = dict(model=teacher, class_map=class_map, engine="eager")
        with caplog.at_level(logging.WARNING, logger="d2kd"):
            DistilledDetector(student=student, teacher=node, losses=losses).load_teacher()
        assert len([x for x in caplog.records if "identically zero with one class" in x.getMessage()]) == number


def test_squares_of_one_size_go_together():
    student, teacher = (build_detector("FCOS", seed=seed, square_pad=64) for seed in (0, 1))
    assert run_step(distilled(student, teacher, "bckd"), make_batch())["loss_kd_bckd_cls"] > 0
