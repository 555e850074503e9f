"""The student inside a DistilledDetector trains exactly as it would alone."""

from copy import deepcopy

import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, build_detector, distilled, gradients, make_batch, make_losses, run_step, watched

METHODS = (None, "bckd", "crosskd")


@pytest.fixture(autouse=True, scope="module")
def warm_torchscript():
    """Detectron2's focal loss is TorchScript, whose first (profiled) call of a process has gradients that differ from
    those of the optimised later ones in the last bit."""
    for family in FAMILIES:
        detector = build_detector(family)
        for _ in range(2):
            sum(run_step(detector, make_batch()).values()).backward()


@pytest.mark.parametrize("norm", ["", "BN"], ids=["no_norm", "BN"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_detection_losses_are_bit_identical_over_steps(family, method, norm):
    stock = build_detector(family, norm=norm)
    model = distilled(deepcopy(stock), build_detector(family, seed=1), method)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (stock, model)]
    for step in range(4):
        batch = make_batch(seed=step, objects=(step, 2))
        expected, found = run_step(stock, batch, step), run_step(model, batch, step)
        assert list(found)[: len(expected)] == list(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"step {step}: {name}"
        normalizer = getattr(stock, "loss_normalizer", None)  # GFL and ATSS keep none
        assert getattr(model.student, "loss_normalizer", None) == normalizer
        assert model.distillation.loss_normalizer_0.item() == (normalizer or 0)
        # Both follow the student's own losses, so that later steps still compare equal weights.
        for optimizer, losses in zip(optimizers, (expected, found), strict=True):
            optimizer.zero_grad()
            sum(losses[name] for name in expected).backward()
            optimizer.step()
    for (name, ours), (stock_name, theirs) in zip(
        model.student.state_dict().items(), stock.state_dict().items(), strict=True
    ):
        assert name == stock_name
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_baseline_are_bit_identical(family):
    stock = build_detector(family)
    model = distilled(deepcopy(stock))
    batch = make_batch()
    expected = gradients(stock, sum(run_step(stock, batch).values()))
    found = gradients(model, sum(run_step(model, batch).values()))
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_eval_mode_is_the_student(family, method):
    stock = build_detector(family, test_score_thresh=0.0)
    model = distilled(deepcopy(stock), build_detector(family, seed=1), method).eval()
    batch = make_batch()
    for ours, theirs in zip(model(batch), stock.eval()(batch), strict=True):
        assert len(theirs["instances"]) > 0
        for field in ("scores", "pred_classes"):
            assert torch.equal(ours["instances"].get(field), theirs["instances"].get(field))
        assert torch.equal(ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor)
    assert method is None or not model.teacher.is_loaded


def test_losses_come_in_order_and_under_their_names():
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd")
    losses = run_step(model, make_batch())
    assert list(losses) == [
        "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "loss_kd_bckd_cls", "loss_kd_bckd_loc",
    ]  # fmt: skip
    assert all(value.shape == () for value in losses.values())


class LevelByLevelHead(RetinaNetHead):
    """A head that overrides forward, calling one subnet on all levels before the other."""

    def forward(self, features):
        deltas = [self.bbox_pred(self.bbox_subnet(x)) for x in features]
        return [self.cls_score(self.cls_subnet(x)) for x in features], deltas


def test_a_head_with_its_own_forward_gives_the_same_losses():
    student, teacher = build_detector("RetinaNet"), build_detector("RetinaNet", seed=1)
    expected = run_step(distilled(deepcopy(student), deepcopy(teacher), "crosskd"), make_batch())
    student.head.__class__ = teacher.head.__class__ = LevelByLevelHead
    found = run_step(distilled(student, teacher, "crosskd"), make_batch())
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


class MaskingHead(RetinaNetHead):
    """A head whose third list may hold anything."""

    def forward(self, features):
        return (*super().forward(features), [x.new_full((1,), -float("inf")) for x in features])


class Masking(RetinaNet):
    def forward_training(self, images, features, predictions, gt_instances):
        assert predictions[2][0].isinf().all()
        return super().forward_training(images, features, predictions[:2], gt_instances)


def test_what_a_head_returns_beyond_its_boxes_need_not_be_finite():
    student = build_detector("RetinaNet", detector_class=Masking)
    student.head.__class__ = MaskingHead
    expected = run_step(build_detector("RetinaNet"), make_batch())
    found = run_step(distilled(student, build_detector("RetinaNet", seed=1), "bckd"), make_batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Resizing(RetinaNet):
    def preprocess_image(self, batched_inputs):
        return super().preprocess_image([{**x, "image": x["image"][:, ::2, ::2]} for x in batched_inputs])


def test_a_student_that_resizes_its_images_is_refused():
    """The teacher sees them as they are given."""
    student = build_detector("RetinaNet", detector_class=Resizing)
    model = distilled(student, build_detector("RetinaNet", seed=1), "bckd")
    with pytest.raises(TypeError, match="makes an image of 20x24 pixels of one of 40x48.*data mapper"):
        run_step(model, make_batch())
    assert run_step(distilled(build_detector("RetinaNet", detector_class=Resizing)), make_batch())  # alone it may


def test_children_of_two_names_or_none():
    stock, student = build_detector("FCOS"), build_detector("FCOS")
    for detector in (stock, student):
        detector.same_head = detector.head
        detector.register_module("neck", None)
    model = distilled(student, build_detector("FCOS", seed=1), "crosskd")
    keys = [name for name in model.state_dict() if not name.startswith("distillation.")]
    assert keys == list(stock.state_dict())
    run_step(model, make_batch())
    assert model.student.same_head is model.student.head and model.student.neck is None


def share_relu(detector):
    relu = nn.ReLU()
    for subnet in (detector.head.cls_subnet, detector.head.bbox_subnet):
        for i, module in enumerate(subnet):
            if isinstance(module, nn.ReLU):
                subnet[i] = relu
    return detector


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_head_that_shares_its_relu_is_refused_for_taps_only(who):
    pair = dict(student=build_detector("RetinaNet"), teacher=build_detector("RetinaNet", seed=1))
    share_relu(pair[who])
    with pytest.raises(ValueError, match="shares that module between blocks"):
        run_step(distilled(**deepcopy(pair), losses="crosskd"), make_batch())
    run_step(distilled(**pair, losses="bckd"), make_batch())


def test_hooks_do_not_outlive_a_step_nor_an_exception():
    student, teacher = build_detector("FCOS"), build_detector("FCOS", seed=1)
    model = distilled(student, teacher, "crosskd")
    run_step(model, make_batch())

    def fail(features):
        raise RuntimeError("a broken predictor")

    student.head.ctrness.forward = fail
    with pytest.raises(RuntimeError, match="a broken predictor"):
        run_step(model, make_batch())
    for detector in (student, teacher):
        assert not any(module._forward_hooks for module in detector.modules())


class OverridesForward(FCOS):
    def forward(self, batched_inputs):
        return super().forward(batched_inputs)


class NeverLabels(FCOS):
    def forward_training(self, images, features, predictions, gt_instances):
        return {"loss_other": predictions[0][0].sum()}


class LabelsTwice(RetinaNet):
    def forward_training(self, images, features, predictions, gt_instances):
        self.label_anchors(self.anchor_generator(features), gt_instances)
        return super().forward_training(images, features, predictions, gt_instances)


def test_a_detector_that_overrides_forward_is_refused_by_name():
    with pytest.raises(TypeError, match="OverridesForward overrides DenseDetector.forward"):
        distilled(build_detector("FCOS", detector_class=OverridesForward))
    model = distilled(build_detector("FCOS"), build_detector("FCOS", detector_class=OverridesForward), "bckd")
    with pytest.raises(TypeError, match="OverridesForward overrides DenseDetector.forward"):
        model.load_teacher()


@pytest.mark.parametrize("cls, times", [(NeverLabels, 0), (LabelsTwice, 2)])
def test_a_detector_without_one_assignment_is_refused(cls, times):
    family = "RetinaNet" if issubclass(cls, RetinaNet) else "FCOS"
    model = distilled(build_detector(family, detector_class=cls))
    with pytest.raises(TypeError, match=f"{cls.__name__}.forward_training called label_anchors {times} times"):
        run_step(model, make_batch())


def test_what_is_no_dense_detector_is_refused():
    with pytest.raises(TypeError, match="Linear is no DenseDetector of detectron2"):
        DistilledDetector(student=nn.Linear(1, 1))


class FailsAfterLabels(RetinaNet):
    def losses(self, *args):
        raise RuntimeError("a broken loss")


@pytest.mark.parametrize("own", [False, True], ids=["method", "instance attribute"])
def test_label_anchors_is_shadowed_only_during_the_step(own):
    student = build_detector("RetinaNet", detector_class=FailsAfterLabels)
    if own:
        student.label_anchors = shadow = lambda *args: RetinaNet.label_anchors(student, *args)
    with pytest.raises(RuntimeError, match="a broken loss"):
        run_step(distilled(student), make_batch())
    assert vars(student).get("label_anchors") is (shadow if own else None)


def test_replaced_children_are_the_ones_that_train():
    model = distilled(build_detector("FCOS", norm="BN"))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted.student.backbone is converted.backbone
    model.head = replacement = build_detector("FCOS", seed=5).head
    assert model.student.head is replacement
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.student.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_under_bf16_autocast(family, method):
    """Finite; the detector's losses and the kernels compute in fp32; the assignment is that of an fp32 step."""
    student, teacher = build_detector(family), build_detector(family, seed=1)
    model = distilled(student, teacher, method)
    dtypes = []
    for loss in model.losses.values():
        loss.register_forward_pre_hook(
            lambda m, args: dtypes.append((torch.is_autocast_enabled("cpu"), args[0].boxes[0].dtype))
        )
    batch = make_batch()
    with watched("train_student") as runs:
        exact = run_step(model, batch)
        dtypes.clear()
        vars(model.student).pop("loss_normalizer", None)  # both steps are the first
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = run_step(model, batch)
    exact_run, rounded_run = runs
    assert rounded_run.output.features[0].dtype == torch.bfloat16  # the autocast was on
    assert all(x.dtype == torch.float32 for x in rounded_run.output.logits + rounded_run.output.box_params)
    for a, b in zip(exact_run.assignment.labels, rounded_run.assignment.labels, strict=True):
        assert torch.equal(a, b)
    assert dtypes == [(False, torch.float32)] * len(model.losses)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        # Labels and losses are those of fp32, the predictions are rounded to 8 bits.
        torch.testing.assert_close(value, exact[name], rtol=0.15, atol=0.02)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_losses_given_as_modules_or_none():
    losses = {**make_losses("bckd"), "off": None}
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), losses)
    assert list(model.losses) == ["bckd_cls", "bckd_loc"]


class OwnLosses(RetinaNet):
    """A detector whose losses may assert what they like."""

    def losses(self, *args):
        return super().losses(*args)


NAMED = {
    "FCOS": "the student's box predictions",
    "RetinaNet": "loss_box_reg",
    "GFL": "loss_cls, loss_box_reg, loss_dfl",
    "ATSS": "loss_box_reg",
}


@pytest.mark.parametrize(
    "family, options, named",
    [
        *((family, {}, named) for family, named in NAMED.items()),
        ("RetinaNet", dict(box_reg_loss_type="giou"), "the student's box predictions"),
        ("RetinaNet", dict(detector_class=OwnLosses), "the student's box predictions"),
    ],
)
def test_box_predictions_that_are_not_finite_are_named(family, options, named):
    """Before forward_training, if an assertion there could stop this rank alone."""
    student = build_detector(family, **options)
    with torch.no_grad():
        student.head.bbox_pred.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=f"Not finite: {named}"):
        run_step(DistilledDetector(student=student), make_batch())
