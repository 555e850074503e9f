"""Heads and detectors that people write on top of Detectron2's: each works, or is refused by name."""

from copy import deepcopy

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import nn

import d2kd
from d2kd.modeling import DistilledDetector
from d2kd.modeling.adapters import RetinaNetAdapter
from d2kd.modeling.detectors import GFLHead
from tests.foreign import heads
from tests.foreign.projects import SharedTrainingHead
from tests.helpers import build_detector, distilled, make_batch, preset, run_step


class OwnRetinaNet(RetinaNet):
    """A subclass with losses of its own."""

    def losses(self, *args):
        return {name: 2 * value for name, value in super().losses(*args).items()}


class OwnFCOS(FCOS):
    """A subclass with labels of its own: centres of objects only."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, center_sampling_radius=0.75)


#: (family, class of the head, class of the detector, norm of the head)
WORK = {
    "a subclass with its own losses": ("RetinaNet", None, OwnRetinaNet, ""),
    "a subclass with its own labels": ("FCOS", None, OwnFCOS, "GN"),
    "all boxes first": ("RetinaNet", heads.BoxesFirst, None, ""),
    "centerness first": ("FCOS", heads.CenternessFirst, None, ""),
    "an extra list": ("RetinaNet", heads.ExtraList, heads.ExtraDetector, ""),
    "an extra mapping": ("RetinaNet", heads.ExtraDict, heads.ExtraDetector, ""),
    "batch norm cycled by level": ("RetinaNet", None, None, "BN"),
    "batch norm cycled, boxes first": ("RetinaNet", heads.BoxesFirst, None, "BN"),
    "batch norm with one set of statistics": ("FCOS", None, None, nn.BatchNorm2d),
    "batch norm over all levels at once": ("RetinaNet", SharedTrainingHead, None, nn.BatchNorm2d),
    "sync batch norm over all levels at once": ("RetinaNet", SharedTrainingHead, None, nn.SyncBatchNorm),
    "batch statistics in inference": ("RetinaNet", None, None, heads.BatchStatistics),
    "instance norm": ("FCOS", None, None, lambda c: nn.InstanceNorm2d(c, affine=True)),
}
#: As teacher of a crossed loss: (family, class of the head, norm, what the message says)
NO_TEACHER = {
    "attention after the towers": (heads.Attention, "", "Attention.forward does more"),
    "levels from the last": (heads.CoarseFirst, "", r"the 'cls' tower has the maps \[\(1, 2\), .* levels in order"),
    "one tower, called once": (heads.OneTower, "", "after block 1 of the 'box' tower was recorded 0 times for 3"),
    "modules that are not called": (heads.Functional, "", "was recorded 0 times .* write an adapter whose towers()"),
    "batch statistics over all levels": (SharedTrainingHead, heads.BatchStatistics, "SharedTrainingHead.forward does"),
}


def with_norm(norm):
    return (lambda c: nn.GroupNorm(4, c)) if norm == "GN" else norm


def build(name, seed=0):
    family, head, detector, norm = WORK[name]
    return heads.with_head(family, head, detector_class=detector, norm=with_norm(norm), seed=seed)


def buffers(model):
    """Buffers, and counters of cycled norms."""
    found = {name: x.clone() for name, x in model.named_buffers()}
    for name, module in model.named_modules():
        if isinstance(module, CycleBatchNormList):
            found[f"{name}._pos"] = torch.tensor(module._pos)
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def check_step(student, teacher, method, family):
    """One step: the student's losses and running statistics are those without a teacher, who is left alone."""
    batch = make_batch()
    plain = deepcopy(student).train()
    expected = run_step(plain, batch)
    teachers = buffers(teacher.eval())
    model = distilled(student, teacher, preset(method, family)).train()
    found = run_step(model, batch)
    assert_same({name: found[name] for name in expected}, expected)
    extra = {name: value for name, value in found.items() if name not in expected}
    assert all(name.startswith("loss_kd_") and value.isfinite() for name, value in extra.items())
    assert max(extra.values()) > 0
    assert_same(buffers(d2kd.student(model)), buffers(plain))
    assert_same(buffers(teacher), teachers)
    sum(found.values()).backward()
    return model


@pytest.mark.parametrize("method", ["crosskd", "bckd"])
@pytest.mark.parametrize("name", WORK)
def test_as_student_and_as_teacher(name, method):
    family = WORK[name][0]
    own = OwnFCOS if name == "a subclass with its own labels" else None
    check_step(build(name), build_detector(family, seed=1, detector_class=own), method, family)
    check_step(build_detector(family, seed=1, detector_class=own), build(name), method, family)
    check_step(build(name), build(name, seed=1), method, family)
    d2kd.check_adapter(build(name))


def test_the_loss_on_an_extra_list_trains_and_stays_the_students_own():
    model = check_step(build("an extra list"), build("an extra list", seed=1), "crosskd", "RetinaNet")
    assert "loss_extra" in run_step(model, make_batch())


def test_an_extra_mapping_under_autocast():
    model = distilled(build("an extra mapping"), build("an extra mapping", seed=1), "bckd").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = run_step(model, make_batch())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())


@pytest.mark.parametrize("name", NO_TEACHER)
def test_heads_that_cannot_be_crossed(name):
    """Refused before the first step, and by the self-check, but only where they would have to be crossed."""
    head, norm, message = NO_TEACHER[name]
    odd, stock = heads.with_head("RetinaNet", head, norm=norm), build_detector("RetinaNet")
    student = deepcopy(odd)
    with pytest.raises(ValueError, match=message):
        distilled(stock, odd, preset("crosskd", "RetinaNet")).load_teacher()
    with pytest.raises((TypeError, ValueError), match=r"with a \w+: .*whose (towers|predict)\(\)"):
        d2kd.check_adapter(odd)
    check_step(deepcopy(stock), odd, "bckd", "RetinaNet")
    check_step(student, stock, "bckd", "RetinaNet")


@pytest.mark.parametrize("name", ["attention after the towers", "batch statistics over all levels"])
def test_a_student_may_do_more_than_its_towers(name):
    head, norm, _ = NO_TEACHER[name]
    check_step(heads.with_head("RetinaNet", head, norm=norm), build_detector("RetinaNet"), "crosskd", "RetinaNet")


@pytest.mark.parametrize("name", ["levels from the last", "one tower, called once", "modules that are not called"])
def test_a_student_whose_taps_cannot_be_recorded(name):
    """Refused in the first forward pass, before any weight changes."""
    head, _, message = NO_TEACHER[name]
    model = distilled(heads.with_head("RetinaNet", head), build_detector("RetinaNet"), "crosskd")
    with pytest.raises(ValueError, match=message.replace(r"\(1, 2\)", r"\(2, 2\)")):
        run_step(model.train(), make_batch())


def test_attention_is_caught_on_a_head_that_was_never_trained():
    """Detectron2's initial predictors say little more than their biases, to which attention makes no difference."""
    teacher = build_detector("RetinaNet")
    for module in teacher.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
    stock = deepcopy(teacher)
    distilled(build_detector("RetinaNet"), stock, "crosskd").load_teacher()
    teacher.head.__class__ = heads.Attention
    with pytest.raises(ValueError, match="Attention.forward does more"):
        distilled(build_detector("RetinaNet"), teacher, "crosskd").load_teacher()


def test_one_tower_under_both_names():
    """Called once a level it can be crossed, called once a branch its taps come twice."""
    detector = heads.with_head("RetinaNet", heads.OneTower)
    detector.head.bbox_subnet = detector.head.cls_subnet
    check_step(deepcopy(detector), detector, "crosskd", "RetinaNet")
    assert d2kd.check_adapter(detector).channels == {"cls": [8, 8, 8], "box": [8, 8, 8]}
    stock = build_detector("RetinaNet")
    stock.head.bbox_subnet = stock.head.cls_subnet
    with pytest.raises(ValueError, match="block 1 of its 'cls' tower 2 times a level, .* use the output again"):
        distilled(build_detector("RetinaNet"), stock, "crosskd").load_teacher()
    with pytest.raises(TypeError, match="tower 2 times a level"):
        d2kd.check_adapter(stock)
    check_step(build_detector("RetinaNet"), stock, "bckd", "RetinaNet")


def test_towers_that_are_lists():
    detector = heads.with_head("RetinaNet", heads.ModuleLists)
    detector.head.cls_subnet = nn.ModuleList(detector.head.cls_subnet)
    with pytest.raises(TypeError, match="of type nn.Sequential, found ModuleList: write an adapter whose towers()"):
        distilled(detector, build_detector("RetinaNet"), "crosskd").load_teacher()
    check_step(detector, build_detector("RetinaNet"), "bckd", "RetinaNet")


@pytest.mark.parametrize(
    "head, message",
    [
        (heads.ExtraFirst, r"ExtraFirst.forward returned a map of shape .* looks for class logits of level 0"),
        (heads.BoxesReturnedFirst, "BoxesReturnedFirst.forward returned .* looks for class logits .* dense_output"),
        (heads.DictHead, "DictHead.forward returned a dict, expected lists of per-level maps"),
    ],
)
@pytest.mark.parametrize("odd", ["student", "teacher"])
def test_other_lists_than_the_adapter_reads(head, message, odd):
    """Refused in the first forward pass, before any weight changes."""

    class Lenient(RetinaNet):
        def forward_training(self, images, features, predictions, gt_instances):
            return super().forward_training(images, features, self.stock(features), gt_instances)

        def stock(self, features):
            return heads.RetinaNetHead.forward(self.head, features)

    pair = [heads.with_head("RetinaNet", head, detector_class=Lenient), build_detector("RetinaNet", seed=1)]
    model = distilled(*(pair if odd == "student" else pair[::-1]), "bckd")
    with pytest.raises(TypeError, match=message):
        run_step(model.train(), make_batch())


def test_a_centerness_that_is_missing():
    detector = build_detector("FCOS")
    detector.head.__class__ = heads.RetinaNetHead
    with pytest.raises(TypeError, match=r"returned 2 lists of maps, expected 3 \(class logits, boxes, centerness\)"):
        run_step(distilled(build_detector("FCOS", seed=1), detector, "bckd").train(), make_batch())


class ForgetfulHead(GFLHead):
    def predict(self, level, towers_out):
        super().predict(level, towers_out)


class PairedHead(GFLHead):
    def predict(self, level, towers_out):
        return super().predict(level, towers_out), None


@pytest.mark.parametrize("head_class, found", [(ForgetfulHead, "None"), (PairedHead, "tuple, NoneType")])
@pytest.mark.parametrize("odd", ["student", "teacher"])
def test_a_heads_predict_that_returns_no_maps(odd, head_class, found):
    detector = build_detector("GFL")
    detector.head.__class__ = head_class
    pair = [detector, build_detector("GFL", seed=1)]
    model = distilled(*(pair if odd == "student" else pair[::-1]), "bckd")
    name = head_class.__name__
    with pytest.raises(
        TypeError, match=rf"^{name}.predict\(\) returned {found}, expected the maps .* end {name}.predict"
    ):
        run_step(model, make_batch())


class HeadWithoutReturn(heads.RetinaNetHead):
    def forward(self, features):
        super().forward(features)


@pytest.mark.parametrize("engine", ["eager", "folded"])
@pytest.mark.parametrize("odd", ["student", "teacher"])
def test_a_head_that_returns_nothing(odd, engine):
    pair = [heads.with_head("RetinaNet", HeadWithoutReturn), build_detector("RetinaNet", seed=1)]
    student, teacher = pair if odd == "student" else pair[::-1]
    losses = preset("bckd", "RetinaNet")
    model = DistilledDetector(student=student, teacher=dict(model=teacher, engine=engine), losses=losses)
    with pytest.raises(TypeError, match="HeadWithoutReturn.forward returned a NoneType, expected lists of per-level"):
        run_step(model, make_batch())


def test_an_adapters_predict_that_returns_no_maps(monkeypatch):
    monkeypatch.setattr(RetinaNetAdapter, "predict", lambda self, head, level, towers: None)
    pair = build_detector("RetinaNet"), build_detector("RetinaNet", seed=1)
    with pytest.raises(TypeError, match=r"RetinaNetAdapter.predict\(\) returned None, expected the maps of one level"):
        distilled(*pair, "crosskd").load_teacher()
    with pytest.raises(TypeError, match=r"predict\(\) fails with RetinaNetAdapter.predict\(\) returned None"):
        d2kd.check_adapter(pair[0])


@pytest.mark.parametrize("family, name", [("RetinaNet", "cls_score"), ("FCOS", "ctrness")])
def test_predictors_of_other_names(family, name):
    teacher = build_detector(family)
    head = teacher.head
    predictor = getattr(head, name)
    delattr(head, name)

    def forward(features):
        setattr(head, name, predictor)
        predictions = type(head).forward(head, features)
        delattr(head, name)
        return predictions

    head.forward = forward
    with pytest.raises(TypeError, match=f"has no {name}, which .* whose predict"):
        distilled(build_detector(family), teacher, "crosskd").load_teacher()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_detector_with_a_forward_of_its_own(who):
    class Own(RetinaNet):
        def forward(self, batched_inputs):
            return super().forward(batched_inputs)

    own, stock = build_detector("RetinaNet", detector_class=Own), build_detector("RetinaNet")
    with pytest.raises(TypeError, match="Own overrides DenseDetector.forward"):
        distilled(*((own, stock) if who == "student" else (stock, own)), "bckd").load_teacher()
    with pytest.raises(TypeError, match="Own overrides DenseDetector.forward"):
        d2kd.check_adapter(own)
