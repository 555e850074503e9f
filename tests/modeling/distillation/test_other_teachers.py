"""A teacher of another detector family, through crossed heads: the crossed output is in the teacher's anchors."""

from itertools import permutations

import pytest
import torch

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.modeling import get_adapter
from tests.helpers import (
    FAMILIES,
    build_detector,
    distilled,
    gradients,
    make_batch,
    preset,
    reached,
    run_step,
)

PAIRS = list(permutations(FAMILIES, 2))


@pytest.mark.parametrize("family, teachers", PAIRS)
def test_a_step(family, teachers):
    """By the preset of the teacher's family, in whose coding the crossed output is."""
    student, teacher = build_detector(family), build_detector(teachers, seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = distilled(student, teacher, preset("crosskd", teachers, tail=1))
    losses = run_step(model, make_batch(objects=4))
    alone = run_step(build_detector(family), make_batch(objects=4))
    assert all(torch.equal(losses[name], value) for name, value in alone.items())
    kd = {name: value for name, value in losses.items() if name.startswith("loss_kd_")}
    assert all(value > 0 and value.isfinite() for value in kd.values())
    grads = reached(gradients(model, sum(kd.values())))
    assert {name.split(".")[0] for name in grads} == {"backbone", "head"}
    # The student's predictors are trained by its labels alone.
    assert {name.split(".")[1] for name in grads if name.startswith("head")} <= {"cls_subnet", "bbox_subnet"}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("family, teachers", PAIRS)
def test_a_student_with_the_teachers_taps_has_its_predictions(family, teachers):
    """In whichever anchors: nothing is left to learn."""
    student, teacher = build_detector(family), build_detector(teachers, seed=1)
    losses = dict(
        cls=BinaryClassificationKD(source="crossed", region="everywhere"),
        loc=IoULocalizationKD(source="crossed", region="everywhere"),
    )
    different = run_step(distilled(build_detector(family), build_detector(teachers, seed=1), losses), make_batch())
    student.backbone.load_state_dict(teacher.backbone.state_dict())
    for tower in ("cls_subnet", "bbox_subnet"):
        getattr(student.head, tower).load_state_dict(getattr(teacher.head, tower).state_dict())
    # In training the student's batch norm normalises by the batch; alike in both only where it does not.
    for detector in (student, teacher):
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum, module.track_running_stats = None, False
                module.running_mean = module.running_var = None
    model = distilled(student, teacher, losses)
    seen = []
    losses["loc"].register_forward_pre_hook(lambda m, args: seen.append(args))
    found = run_step(model, make_batch())
    assert found["loss_kd_cls"] < 1e-3 * different["loss_kd_cls"]
    assert found["loss_kd_loc"] < 1e-3 * different["loss_kd_loc"]
    crossed, own, *_ = seen[0]
    maps = [torch.zeros(1, 1, h, w) for h, w in own.sizes]
    for level, boxes in enumerate(teacher.anchor_generator(maps)):
        flat = crossed.anchors[level].permute(1, 2, 0, 3).flatten(0, 2)
        assert torch.equal(flat, boxes.tensor)
        torch.testing.assert_close(crossed.boxes[level], own.boxes[level], rtol=1e-3, atol=1e-2)


def test_one_layout_is_labelled_once(monkeypatch):
    student, teacher = build_detector("GFL"), build_detector("ATSS", seed=1)  # the same anchors
    model = distilled(student, teacher, preset("crosskd", "ATSS", tail=1))
    calls = []
    for name, detector in (("student", student), ("teacher", teacher)):
        own = detector.label_anchors
        monkeypatch.setattr(
            detector, "label_anchors", lambda *args, own=own, name=name: calls.append(name) or own(*args)
        )
    run_step(model, make_batch())
    assert calls == ["student"]


@pytest.mark.parametrize("family, teachers", PAIRS)
def test_direct_terms_are_refused_where_anchors_differ(family, teachers):
    student, teacher = build_detector(family), build_detector(teachers, seed=1)
    model = distilled(student, teacher, dict(cls=BinaryClassificationKD()))
    if {family, teachers} == {"GFL", "ATSS"}:  # one layout
        run_step(model, make_batch())
        return
    with pytest.raises(ValueError) as error:
        model.load_teacher()
    for part in ("model.losses.cls", f"a {family} student and a {teachers} teacher", "anchor_generator", "'crossed'"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "family, teachers, name", [("GFL", "RetinaNet", "crosskd_loc"), ("ATSS", "GFL", "crosskd_centerness")]
)
def test_a_preset_of_the_students_family_that_does_not_fit_says_which_does(family, teachers, name):
    model = distilled(build_detector(family), build_detector(teachers, seed=1), preset("crosskd", family, tail=1))
    with pytest.raises(ValueError) as error:
        model.load_teacher()
    assert f"model.losses.{name}" in str(error.value)
    assert f"take the preset of {teachers}" in str(error.value)
    assert get_adapter(build_detector(teachers)).describe(build_detector(teachers)).family == teachers
