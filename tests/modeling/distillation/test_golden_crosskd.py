"""CrossKD end to end against the numbers of its authors' code, from FPN features to gradients."""

import pytest
import torch
from detectron2.config import instantiate

from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from tests.helpers import run_step, watched
from tests.modeling.distillation.golden_scene import (
    STRIDES,
    build_golden_detector,
    build_head,
    load_golden,
    load_head,
    make_scene,
    to_flat,
    to_maps,
)

FILES = {
    "RetinaNet": "06_crosskd_retinanet.npz",
    "FCOS": "06_crosskd_fcosnorm.npz",
    "GFL": "06_crosskd_gfl.npz",
    "ATSS": "06_crosskd_atss.npz",
}


def build(family, arrays, who, features):
    head = build_head(family)
    load_head(family, head, arrays, who)
    return build_golden_detector(family, features, head)


class Run:
    """One step of a DistilledDetector on the golden scene, and the golden arrays."""

    def __init__(self, family: str) -> None:
        self.family, self.arrays = family, load_golden(FILES[family])
        arrays = self.arrays
        hw = arrays["level_hw"]
        self.features = [x.contiguous().requires_grad_() for x in to_maps(arrays["in/stu_feat"], hw)]
        losses = get_losses("crosskd", family)
        for node in losses.values():
            if node.get("normalizer", "positives") == "positives":
                node.normalizer = "local_positives"  # as in their code
        model = DistilledDetector(
            student=build(family, arrays, "student", self.features),
            teacher=dict(model=build(family, arrays, "teacher", to_maps(arrays["in/tea_feat"], hw)), engine="eager"),
            losses={name: instantiate(node) for name, node in losses.items()},
        )
        self.losses, self.seen = model.losses, {}
        for name, loss in model.losses.items():
            loss.register_forward_pre_hook(lambda m, args, name=name: self.seen.update({name: args}))
        boxes, classes = ([arrays[f"gt/{what}{i}"] for i in range(2)] for what in ("boxes", "classes"))
        batch = make_scene(boxes, classes, (64, 96))
        with watched("train_student") as runs:
            self.found = run_step(model, batch)
        (self.student,) = runs
        if family == "FCOS":
            # Their FCOS divides by the sum of centerness targets: put in its place here.
            positive = arrays["tgt/labels"] != 5
            distances = arrays["tgt/bbox_targets"][positive].double().unflatten(-1, (2, 2))  # left top, right bottom
            centerness = (distances.amin(1) / distances.amax(1)).prod(-1).sqrt().sum()
            self.parity = positive.sum() / centerness
        else:
            self.parity = torch.ones((), dtype=torch.float64)
        self.normalizer = float(self.student.assignment.num_positives.sum() / self.parity)


@pytest.fixture(scope="module", params=list(FILES))
def run(request):
    return Run(request.param)


def boxes_from_mmdet(run, name, deltas):
    """Our raw box parameters in the units of theirs: in eval mode their FCOS gives pixels, after its ReLU."""
    if run.family != "FCOS":
        return to_flat(deltas)
    unit = [1] * 5 if name == "stu" else STRIDES
    return to_flat([x.relu() * s for x, s in zip(deltas, unit, strict=True)])


def test_assignment(run):
    expected = run.arrays["tgt/labels"]
    labels = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in run.student.assignment.labels], dim=1)
    assert torch.equal(labels.clamp(min=0)[labels >= 0], expected[labels >= 0])
    if "tgt/avg_factor" in run.arrays:
        assert run.student.assignment.num_positives.sum() == run.arrays["tgt/avg_factor"] > 20


@pytest.mark.parametrize("who", ["tea", "stu", "reused"])
def test_predictions(run, who):
    source, teacher, *_ = run.seen["crosskd_cls"]
    output = {"tea": teacher, "stu": run.student.output, "reused": source}[who]
    tolerance = dict(rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(to_flat(output.logits), run.arrays[f"pred/{who}_cls"], **tolerance)
    deltas = boxes_from_mmdet(run, who, output.box_params)
    torch.testing.assert_close(deltas, run.arrays[f"pred/{who}_reg"], rtol=2e-5, atol=1e-4)
    if output.centerness is not None:
        centerness = to_flat([x[:, None] for x in output.centerness])
        torch.testing.assert_close(centerness, run.arrays[f"pred/{who}_ctr"], **tolerance)


TERMS = {"crosskd_cls": "loss_cls_kd", "crosskd_loc": "loss_reg_kd", "crosskd_centerness": "losses_center_kd"}


def test_losses(run):
    assert {TERMS[name] for name in run.losses} == {
        key.removesuffix("__per_level") for key in run.arrays if "_kd__per_level" in key
    }
    for name, loss in run.losses.items():
        expected = run.arrays[f"{TERMS[name]}__per_level"]
        total = run.found[f"loss_kd_{name}"] * run.parity
        torch.testing.assert_close(total.float(), expected.sum(), rtol=2e-5, atol=0)
        if len(expected) == 5:
            *outputs, region = run.seen[name]
            normalizer = sum(w.sum() for w in region) if loss.regions[0].normalizer == "locations" else run.normalizer
            levels = loss(*outputs, region) * loss.weight / normalizer
            torch.testing.assert_close(levels, expected, rtol=5e-5, atol=1e-7)


@pytest.mark.parametrize("run", ["GFL", "ATSS"], indirect=True)
def test_detection_losses(run):
    """The student's own (those of RetinaNet and FCOS are Detectron2's, normalised otherwise)."""
    ours = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox"}
    ours |= {"loss_dfl": "loss_dfl"} if run.family == "GFL" else {"loss_centerness": "loss_centerness"}
    assert [name for name in run.found if "_kd_" not in name] == list(ours)
    for name, theirs in ours.items():
        torch.testing.assert_close(run.found[name], run.arrays[f"{theirs}__per_level"].sum(), rtol=2e-5, atol=0)
    grads = torch.autograd.grad(sum(run.found[name] for name in ours), run.features, retain_graph=True)
    expected = to_maps(run.arrays["sup__grad_stu_feat"], run.arrays["level_hw"])
    for grad, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, theirs, rtol=2e-4, atol=2e-4 * theirs.abs().max().item() + 1e-10)


@pytest.mark.parametrize(
    "name, theirs, maps",
    [
        ("crosskd_cls", "loss_cls_kd__grad_reused_cls", "logits"),
        ("crosskd_loc", "loss_reg_kd__grad_reused_reg", "box_params"),
    ],
)
def test_gradients_of_crossed_predictions(run, name, theirs, maps):
    source = run.seen[name][0]
    predictions = getattr(source, maps)
    grads = torch.autograd.grad(run.found[f"loss_kd_{name}"] * run.parity, predictions, retain_graph=True)
    found, expected = to_flat(grads), run.arrays[theirs]
    if maps == "box_params" and run.family == "FCOS":
        # Theirs is per pixel and after the ReLU: it has no say where the ReLU stops it.
        strides = to_flat([torch.full_like(x, s) for x, s in zip(predictions, STRIDES, strict=True)])
        expected = expected * strides * (to_flat(predictions) > 0)
    # Not the 1x1 level: alignment makes its two values the teacher's up to rounding, which then decides the sign.
    anchors = predictions[-1].shape[1]
    found, expected = found[:, :-anchors], expected[:, :-anchors]
    assert expected.count_nonzero() > 100
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)


def test_gradients_of_the_students_features(run):
    total = sum(run.found[f"loss_kd_{name}"] for name in run.losses) * run.parity
    grads = torch.autograd.grad(total, run.features, retain_graph=True)
    expected = to_maps(run.arrays["kd__grad_stu_feat"], run.arrays["level_hw"])
    for grad, theirs in list(zip(grads, expected, strict=True))[:4]:  # not the 1x1 level, as above
        torch.testing.assert_close(grad, theirs, rtol=1e-3, atol=2e-4 * theirs.abs().max().item() + 1e-10)
        assert grad.abs().max() > 1e-6
