"""What docs/own_detector.md writes for detectors of other kinds; its adapter has a file of its own."""

import sys
from types import ModuleType

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.fcos import FCOS
from fvcore.common.registry import Registry

import d2kd
from d2kd.config.registered import build_registered
from d2kd.modeling import ADAPTER_REGISTRY
from tests import yacs_projects
from tests.foreign import plain
from tests.foreign.projects import code_blocks
from tests.helpers import build_detector, distilled, make_batch, preset, run_step

BLOCKS = code_blocks("python", "own_detector.md")


def run(part, **names):
    """The names that the block of the page with this text in it makes; ``my_project`` has ``names``."""
    (code,) = [block for block in BLOCKS if part in block]
    project = ModuleType("my_project")
    vars(project).update(names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "my_project", project)
        made = {"__name__": "code_of_the_page"}
        exec(compile(code, "docs/own_detector.md", "exec"), made)
    return code, made


@pytest.fixture
def detector_class(monkeypatch):
    """The page's ``MyDetector``; the registry is as before after the test."""
    monkeypatch.setattr(ADAPTER_REGISTRY, "_obj_map", dict(ADAPTER_REGISTRY))
    code, made = run("class MyDetector", Body=plain.Body, Head=plain.Head, PlainDetector=plain.PlainDetector)
    (body,) = [part for part in code.split("\n\n\n") if part.startswith("class MyDetector")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    made["MyDetector"].__module__ = __name__  # where configs find it
    monkeypatch.setattr(sys.modules[__name__], "MyDetector", made["MyDetector"], raising=False)
    return made["MyDetector"]


def build(detector_class, seed):
    torch.manual_seed(seed)
    return detector_class()


def test_it_trains_as_the_plain_one(detector_class):
    """The losses are those of the plain detector on the same images, and its detections."""
    detector = build(detector_class, 0)
    stock = plain.PlainDetector()
    stock.body.load_state_dict(detector.backbone.state_dict())
    stock.head.load_state_dict(detector.head.state_dict())
    batch = make_batch(((48, 64), (48, 64)))
    images = torch.stack([x["image"] for x in batch]) / 255
    targets = [(x["instances"].gt_boxes.tensor, x["instances"].gt_classes) for x in batch]
    expected, found = stock(images, targets), run_step(detector, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    expected, found = stock.eval()(images), detector.eval()(batch)
    for (boxes, scores, classes), output in zip(expected, found, strict=True):
        torch.testing.assert_close(output["instances"].scores, scores)
        torch.testing.assert_close(output["instances"].pred_classes, classes)
        assert len(boxes) > 0


def test_its_adapter(detector_class):
    report = d2kd.check_adapter(build(detector_class, 0))
    assert (report.adapter, report.max_tail, report.strides) == ("MyAdapter", 2, [8, 16])


@pytest.mark.parametrize("method", ["crosskd", "bckd", "pkd"])
def test_it_is_distilled_by_the_name_of_a_method(detector_class, method, tmp_path):
    DetectionCheckpointer(build(detector_class, 1), str(tmp_path)).save("teacher")
    node = d2kd.distill(
        L(detector_class)(),
        teacher=L(detector_class)(),
        teacher_checkpoint=str(tmp_path / "teacher.pth"),
        method=method,
    )
    torch.manual_seed(0)
    model = instantiate(node)
    expected, losses = run_step(build(detector_class, 0), make_batch()), run_step(model, make_batch())
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    terms = [value for name, value in losses.items() if name.startswith("loss_kd_")]
    assert terms and all(value > 0 for value in terms)
    sum(terms).backward()
    assert model.backbone.stem[0][0].weight.grad.abs().sum() > 0


def test_the_losses_alone_are_those_of_a_distilled_step(detector_class):
    """The page's loop is run; each of its steps has the terms of BCKD that a DistilledDetector has."""
    steps, seen = 2, []
    student, teacher = build(detector_class, 0), build(detector_class, 1)

    class Student(plain.PlainDetector):
        def training_losses(self, logits, distances, targets):
            losses, positives = super().training_losses(logits, distances, targets)
            model = distilled(student, teacher, preset("bckd", "FCOS"))
            student.backbone.load_state_dict(self.body.state_dict())
            student.head.load_state_dict(self.head.state_dict())
            seen.append(run_step(model, raw[len(seen)]))
            return losses, positives

    raw = [make_batch(((48, 64), (48, 64)), seed=seed) for seed in range(steps)]
    batches = [
        (
            torch.stack([x["image"] for x in batch]) / 255,
            [(x["instances"].gt_boxes.tensor, x["instances"].gt_classes) for x in batch],
        )
        for batch in raw
    ]

    def load(plain_class, detector):
        made = plain_class()
        made.body.load_state_dict(detector.backbone.state_dict())
        made.head.load_state_dict(detector.head.state_dict())
        return made

    before = {name: value.clone() for name, value in student.state_dict().items()}
    names = dict(
        batches=batches,
        load_student=lambda: load(Student, student),
        load_teacher=lambda: load(plain.PlainDetector, teacher),
    )
    _, made = run("binary_classification_kd(ours", **names)
    assert len(seen) == steps
    for name, value in made["losses"].items():  # of the last step
        if name.startswith("kd_"):
            torch.testing.assert_close(value, seen[-1][f"loss_kd_bckd_{name.removeprefix('kd_')}"])
            assert value > 0
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_losses_alone_need_no_detectron2():
    (code,) = [block for block in BLOCKS if "binary_classification_kd(ours" in block]
    assert "detectron2" not in code and "d2kd.modeling" not in code


def test_a_forward_of_its_own():
    _, made = run("class FlippedFCOS")
    detector = build_detector("FCOS", detector_class=made["FlippedFCOS"], test_score_thresh=0.0)
    model = distilled(detector, build_detector("FCOS", seed=1), "bckd")
    assert run_step(model, make_batch())["loss_kd_bckd_cls"] > 0
    batch = make_batch(((48, 64),))
    flipped = [{**batch[0], "image": batch[0]["image"].flip(-1)}]
    found, expected = model.eval()(batch, flip=True), model(flipped)
    assert torch.equal(found[0]["instances"].scores, expected[0]["instances"].scores)


def test_another_projects_registry(monkeypatch):
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", dict(META_ARCH_REGISTRY))
    registry = Registry("DETECTORS")

    def MyDetector(cfg):
        return build_detector("FCOS")

    registry.register(MyDetector)
    code, _ = run("META_ARCH_REGISTRY.register", DETECTORS=registry)
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) == 1
    assert type(build_registered(yacs_projects.plain(), "MyDetector", "KEY")) is FCOS
