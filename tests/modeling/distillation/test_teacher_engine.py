"""What the teacher computes with: its precision, folded norms, compiled layers."""

import logging
import pickle
import re
from copy import deepcopy
from functools import partialmethod

import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone import FPN
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import d2kd
from d2kd.engine import teacher_predictor
from d2kd.modeling import DistilledDetector, Teacher
from d2kd.modeling.backbones import FrozenStatisticsBatchNorm2d, TimmBackbone, group_norm
from tests.helpers import (
    FAMILIES,
    build_detector,
    distilled,
    gradients,
    make_batch,
    make_losses,
    preset,
    reached,
    run_step,
)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
NORMS = (
    *(nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d),
    *(torchvision.ops.FrozenBatchNorm2d, timm.layers.FrozenBatchNormAct2d),
)


def with_statistics(detector, seed=0):
    """Running statistics and affine parameters as of training."""
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        for name in ("running_mean", "running_var", "weight", "bias"):
            tensor = getattr(module, name, None) if isinstance(module, NORMS) else None
            if tensor is not None:
                with torch.no_grad():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if name != "bias" else -0.5))
    return detector


def build_teacher(family="GFL", **kwargs):
    return with_statistics(build_detector(family, seed=1, **kwargs))


def model_with(teacher, method="crosskd", family="GFL", losses=None, **options):
    return DistilledDetector(
        student=build_detector(family), teacher=dict(model=teacher, **options), losses=losses or make_losses(method)
    )


def loaded(teacher, **options):
    held = Teacher(teacher, **options)
    held.load(torch.device("cpu"), torch.float32)
    return held


def run(held, batch=None):
    """All that a teacher makes of a batch, without losses: maps, taps and features."""
    return held.run(
        batch or make_batch([(48, 64), (48, 64)]),
        input_format="BGR",
        canvas=(48, 64),
        levels=range(3),
        tap_indices={"cls": {0, 1}, "box": {2}},
        keep_features=True,
    )


def maps_of(step):
    output = step.output
    lists = [output.logits, output.box_params, output.centerness or [], output.features, *step.taps.values()]
    return [x for maps in lists for x in maps]


def remaining_norms(detector):
    return [name for name, m in detector.named_modules() if isinstance(m, NORMS)]


@pytest.mark.parametrize("field", ["precision", "engine"])
def test_an_option_that_does_not_exist_is_refused(field):
    with pytest.raises(
        ValueError, match=rf"model.teacher.{field} is 'fast', expected one of .*TEACHER_{field.upper()}"
    ):
        Teacher(build_detector("FCOS"), **{field: "fast"})


@pytest.mark.parametrize("norm", ["", "BN", group_norm(2), nn.BatchNorm2d, nn.SyncBatchNorm], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_it_is_the_plain_teacher(family, norm):
    teacher = build_teacher(family, norm=norm)
    plain, folded = (loaded(deepcopy(teacher), engine=engine) for engine in ("eager", "folded"))
    for found, expected in zip(maps_of(run(folded)), maps_of(run(plain)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    # Statistics of each level cannot be folded into convolutions that all levels share.
    assert all("subnet" in name for name in remaining_norms(folded.detector))
    assert bool(remaining_norms(folded.detector)) == (norm == "BN")
    assert folded.num_parameters == plain.num_parameters == sum(p.numel() for p in plain.detector.parameters())


@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN", FrozenStatisticsBatchNorm2d], ids=str)
def test_norms_of_all_kinds_are_folded(norm):
    teacher = build_teacher(backbone_norm=norm)
    plain, folded = (loaded(deepcopy(teacher), engine=engine) for engine in ("eager", "folded"))
    assert remaining_norms(plain.detector) and not remaining_norms(folded.detector)
    for found, expected in zip(maps_of(run(folded)), maps_of(run(plain)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("freeze_at", [0, 3])
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_norms_of_timm_backbones_are_folded(name, freeze_at):
    """Whose convolutions and norms are children of blocks, and whose norms may hold the activation."""
    torch.manual_seed(0)
    backbone = FPN(TimmBackbone(name, out_indices=(2, 3, 4), freeze_at=freeze_at), ["res3", "res4", "res5"], 8)
    teacher = build_teacher(backbone=backbone)
    plain, folded = (loaded(deepcopy(teacher), engine=engine) for engine in ("eager", "folded"))
    assert remaining_norms(plain.detector) and not remaining_norms(folded.detector)
    for found, expected in zip(maps_of(run(folded)), maps_of(run(plain)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("precision", HALF)
def test_frozen_norms_of_timm_that_stay_are_fp32(precision):
    torch.manual_seed(0)
    bottom_up = TimmBackbone("mobilenetv3_small_050", out_indices=(2, 3, 4), freeze_at=3)
    teacher = build_teacher(backbone=FPN(bottom_up, ["res3", "res4", "res5"], 8))
    plain = loaded(deepcopy(teacher), engine="eager")
    held = loaded(teacher, precision=precision, engine="eager")
    norms = remaining_norms(held.detector)
    assert "backbone.bottom_up.body.bn1" in norms
    dtypes = {x.dtype for name in norms for x in held.detector.get_submodule(name).state_dict().values()}
    assert dtypes == {torch.float32, torch.int64}
    tolerance = 16 * torch.finfo(HALF[precision]).eps
    for x, y in zip(maps_of(run(held)), maps_of(run(plain)), strict=True):
        assert x.dtype == HALF[precision]
        torch.testing.assert_close(x.float(), y, rtol=tolerance, atol=tolerance * y.abs().max().item())


class TwoUses(nn.Module):
    """A norm after either of two convolutions, and a convolution before either of two norms."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.shared, self.first, self.second = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x):
        x = self.shared(self.a(x)) + self.shared(self.b(x))
        return self.inner(self.first(self.c(x)) + self.second(self.c(x)))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_norms_and_convolutions_with_two_uses_stay():
    teacher = build_teacher()
    teacher.backbone = TwoUses(teacher.backbone)
    held = loaded(with_statistics(teacher))
    assert remaining_norms(held.detector) == ["backbone.shared", "backbone.first", "backbone.second"]
    run(held)


class Standardised(Conv2d):
    """A convolution whose weights are standardised at each call, which would take away what is folded in."""

    def forward(self, x):
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        x = nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)
        return self.norm(x) if self.norm is not None else x


class OtherWeights(TwoUses):
    def __init__(self, inner):
        super().__init__(inner)
        self.a = Standardised(3, 3, 1, norm=nn.BatchNorm2d(3))
        self.b = weight_norm(self.b)

    def forward(self, x):
        return self.inner(self.shared(self.b(self.a(x))))


def test_norms_of_convolutions_that_change_their_weight_stay():
    teacher = build_teacher()
    teacher.backbone = OtherWeights(teacher.backbone)
    held = loaded(with_statistics(teacher))
    assert {"backbone.a.norm", "backbone.shared"} <= set(remaining_norms(held.detector))
    run(held)


class ReluInPlace(TwoUses):
    """As it is called by ``nn.ReLU(inplace=True)``: the norm is given the tensor that the convolution made."""

    def forward(self, x):
        return self.inner(self.shared(self.a(x).relu_()) + self.first(self.c(x)))


def test_a_norm_behind_a_relu_in_place_stays():
    teacher = build_teacher()
    teacher.backbone = ReluInPlace(teacher.backbone)
    held = loaded(with_statistics(teacher))
    assert remaining_norms(held.detector) == ["backbone.shared", "backbone.second"]
    run(held)


def test_loaded_in_inference_mode_it_can_be_trained_with():
    model = model_with(build_teacher())
    with torch.inference_mode():
        model.load_teacher()
    gradients(model, sum(run_step(model, make_batch()).values()))


def test_a_module_that_is_given_stays_as_it_is():
    teacher = build_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    layout = [x.stride() for x in teacher.parameters()]
    model = model_with(teacher, precision="bf16")
    run_step(model, make_batch())
    assert teacher.state_dict().keys() == before.keys()
    assert all(value.dtype == before[name].dtype for name, value in teacher.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [x.stride() for x in teacher.parameters()] == layout
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    assert not {id(x) for x in teacher.parameters()} & {id(x) for x in model.teacher.detector.parameters()}
    assert loaded(teacher, engine="eager").detector is teacher


def test_copies_and_checkpoints_know_nothing_of_it():
    plain, engine = (model_with(build_teacher(), **options) for options in ({"engine": "eager"}, {"precision": "bf16"}))
    losses = [run_step(model, make_batch()) for model in (plain, engine)]
    assert losses[0].keys() == losses[1].keys()
    assert plain.state_dict().keys() == engine.state_dict().keys()
    for copy in (deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert copy.teacher is None and copy.state_dict().keys() == plain.state_dict().keys()
    assert {x.dtype for x in engine.parameters()} == {torch.float32}


@pytest.mark.parametrize("engine", ["eager", "folded"])
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("family, norm", [("RetinaNet", "BN"), ("FCOS", ""), ("GFL", group_norm(2))], ids=str)
def test_in_half_precision(family, norm, precision, engine):
    """Weights are cast once; values are those of the plain teacher, to that precision."""
    teacher = build_teacher(family, norm=norm)
    plain, held = loaded(deepcopy(teacher), engine="eager"), loaded(teacher, precision=precision, engine=engine)
    dtypes = {name: x.dtype for name, x in held.detector.state_dict().items() if x.is_floating_point()}
    norms = remaining_norms(held.detector)
    for name, dtype in dtypes.items():
        is_layer = name.startswith(("backbone.", "head.")) and name.rpartition(".")[0] not in norms
        assert dtype == (HALF[precision] if is_layer else torch.float32), name
    found, expected = run(held), run(plain)
    assert {x.dtype for x in (*found.output.logits, *found.output.features, *found.taps["cls", 1])} == {HALF[precision]}
    assert all(x.dtype == torch.float32 for x in (*found.output.boxes, *found.output.anchors))
    tolerance = 16 * torch.finfo(HALF[precision]).eps
    for x, y in zip(maps_of(found), maps_of(expected), strict=True):
        torch.testing.assert_close(x.float(), y, rtol=tolerance, atol=tolerance * y.abs().max().item())
    assert all(torch.equal(x, y) for x, y in zip(found.output.anchors, expected.output.anchors, strict=True))


def test_images_are_normalised_in_fp32(monkeypatch):
    """A mean that bf16 would round by a quarter of a level."""
    held = loaded(build_detector("GFL", pixel_mean=[103.53] * 3, pixel_std=[1.0] * 3), precision="bf16")
    seen = []
    held.detector.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = make_batch([(48, 64)])
    run(held, batch)
    exact = batch[0]["image"] - torch.tensor(103.53)
    assert torch.equal(seen[-1][0], exact.bfloat16())


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_the_crossed_tail(family, precision):
    plain, half = (
        model_with(build_teacher(family), family=family, **options)
        for options in ({"engine": "eager"}, {"precision": precision})
    )
    tolerance = 16 * torch.finfo(HALF[precision]).eps
    losses = [run_step(model, make_batch()) for model in (plain, half)]
    for name in ("loss_kd_crosskd_cls", "loss_kd_crosskd_loc"):
        assert losses[1][name].dtype == torch.float32
        torch.testing.assert_close(losses[1][name], losses[0][name], rtol=tolerance, atol=0)
        expected, found = (gradients(model, x[name]) for model, x in zip((plain, half), losses, strict=True))
        assert reached(found) == reached(expected)
        found, expected = (torch.cat([x[name].flatten() for name in sorted(reached(x))]) for x in (found, expected))
        assert (found - expected).norm() < 4 * tolerance * expected.norm()
    assert all(p.grad is None for p in half.teacher.detector.parameters())


@pytest.mark.parametrize("method", ["bckd", "crosskd", "cwd", "ftpd", "ld", "pkd", "tid"])
def test_every_method_takes_its_maps(method):
    """Losses are computed in fp32, whatever they are given."""
    plain, half = (
        model_with(build_teacher(), losses=preset(method, "GFL", tail=1), **options)
        for options in ({"engine": "eager"}, {"precision": "bf16"})
    )
    expected, found = (run_step(model, make_batch()) for model in (plain, half))
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.1, atol=1e-4)
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


def test_under_autocast_it_runs_in_its_own_precision():
    """Half precision as without autocast, bit for bit; fp32 as the student, under autocast."""
    batch = make_batch()
    held = loaded(build_teacher(), precision="bf16")
    alone = maps_of(run(held))
    with torch.autocast("cpu", dtype=torch.float16):
        inside = maps_of(run(held))
    assert all(torch.equal(x, y) for x, y in zip(inside, alone, strict=True))
    held = loaded(build_teacher())
    with torch.autocast("cpu", dtype=torch.bfloat16):  # of which the comparison with the plain teacher knows nothing
        assert {x.dtype for x in run(held).output.logits} == {torch.bfloat16}
        model = model_with(build_teacher(), precision="fp16")
        losses = run_step(model, batch)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("when", ["before the first step", "after it"])
def test_its_dtype_is_its_own_where_the_model_moves(when):
    model = model_with(build_teacher(), precision="bf16")
    model.load_teacher()
    if when == "after it":
        run_step(model, make_batch())
    dtypes = [x.dtype for x in model.teacher.detector.state_dict().values()]
    weights = [x.clone() for x in model.teacher.detector.parameters()]
    for move in (model.half, model.double):
        move()
        assert [x.dtype for x in model.teacher.detector.state_dict().values()] == dtypes
    assert all(torch.equal(x, y) for x, y in zip(model.teacher.detector.parameters(), weights, strict=True))
    assert run_step(model, make_batch())["loss_kd_crosskd_cls"].item() > 0
    model.to("meta")
    assert {x.device.type for x in model.teacher.detector.parameters()} == {"meta"}


def test_the_largest_difference_is_logged_once(caplog):
    model = model_with(build_teacher(), precision="bf16")
    with caplog.at_level(logging.INFO, logger="detectron2.d2kd.modeling.distillation.teacher_engine"):
        for seed in range(2):
            run_step(model, make_batch(seed=seed))
    (message,) = [x.getMessage() for x in caplog.records if "differs" in x.getMessage()]
    found = re.fullmatch(
        r"The teacher with model.teacher.precision=bf16 and engine=folded differs from the plain one by (\S+) of "
        r"the largest value.",
        message,
    )
    assert 1e-4 < float(found[1]) < 0.1


class Residual(TwoUses):
    """A convolution whose output is read beside the norm as well, which no hook sees."""

    def forward(self, x):
        x = self.a(x)
        return self.inner(self.shared(x) + x)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_folding_would_change_is_not_folded(precision, caplog):
    teacher = build_teacher()
    teacher.backbone = Residual(teacher.backbone)
    with caplog.at_level(logging.WARNING, logger="detectron2.d2kd.modeling.distillation.teacher_engine"):
        model = model_with(with_statistics(teacher), precision=precision)
        assert run_step(model, make_batch())["loss_kd_crosskd_cls"].item() > 0
    (message,) = [x.getMessage() for x in caplog.records]
    assert message.startswith("The teacher's norms are not folded into its convolutions: it would differ by ")
    assert "backbone.shared" in remaining_norms(model.teacher.detector)


def test_it_is_compared_without_tf32():
    """With cuDNN's default, rounding would look like a difference."""
    seen = []
    teacher = build_teacher()
    teacher.head.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    held = loaded(teacher)
    at_load = len(seen)
    run(held)
    assert torch.backends.cudnn.allow_tf32
    # The hook is copied with the module: the copy and the plain one, then the step itself.
    assert not any(seen[:at_load]) and seen[at_load:] == [False, False, True]


def test_what_differs_in_fp32_is_refused():
    model = model_with(build_teacher())
    model.load_teacher()
    next(model.teacher.detector.backbone.parameters()).mul_(2)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"engine=folded differs .*, expected at most 1e-03: set model.teacher.eng"
        ):
            run_step(model, make_batch())


def test_what_overflows_in_half_precision_is_refused():
    teacher = build_teacher(norm=group_norm(2))
    teacher.head.cls_subnet[0].weight.data *= 1e5
    with pytest.raises(ValueError, match="precision=fp16 .* not finite where the plain one's are: set .* to bf16 or"):
        run_step(model_with(teacher, precision="fp16"), make_batch())
    assert run_step(model_with(teacher, precision="bf16"), make_batch())["loss_kd_crosskd_cls"].item() > 0


@pytest.mark.parametrize("precision", HALF)
def test_its_detections_are_made_in_fp32(precision):
    teacher = build_teacher(test_score_thresh=0.3)
    models = [model_with(teacher, engine="eager"), model_with(teacher, precision=precision)]
    found = []
    for model in models:
        model.load_teacher()
        with torch.no_grad():
            found.append(teacher_predictor(model)(make_batch())[0]["instances"])
    assert len(found[0]) and found[1].scores.dtype == found[1].pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(found[1].scores[:5], found[0].scores[:5], rtol=0.05, atol=0.01)


@pytest.fixture
def compiling(monkeypatch):
    """``module.compile()`` without the minutes of code generation."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("family", ["RetinaNet", "GFL"])
def test_compiled_it_is_the_plain_teacher(family, compiling):
    teacher = build_teacher(family)
    plain, held = (model_with(deepcopy(teacher), family=family, engine=x) for x in ("eager", "compile"))
    keys = loaded(teacher).detector.state_dict().keys()
    for seed in range(2):
        expected, found = (run_step(model, make_batch(seed=seed)) for model in (plain, held))
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    sum(found.values()).backward()
    assert held.teacher.detector.state_dict().keys() == keys
    held.teacher.detector.head.cls_score.bias.data.fill_(9.0)  # the compiled code reads it
    assert run_step(held, make_batch())["loss_kd_crosskd_cls"] != found["loss_kd_crosskd_cls"]


def test_a_compiled_student_trains_as_it_is(compiling, tmp_path):
    """Also where a crossed loss comes on after steps without it, when taps are first recorded."""
    plain, model = (model_with(build_teacher("FCOS"), family="FCOS") for _ in range(2))
    keys = model.state_dict().keys()
    model.backbone.compile()
    model.head.compile()
    for step in range(3):
        for each in (plain, model):
            each.losses["crosskd_cls"].weight = each.losses["crosskd_loc"].weight = float(step > 0)
        expected, found = (run_step(x, make_batch(seed=step), step) for x in (plain, model))
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
        grads, wanted = (gradients(x, sum(y.values())) for x, y in ((model, found), (plain, expected)))
        for name, grad in wanted.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-4)
    assert found["loss_kd_crosskd_cls"] > 0
    assert model.state_dict().keys() == keys
    DetectionCheckpointer(model, str(tmp_path)).save("last")
    DetectionCheckpointer(build_detector("FCOS", seed=5)).load(str(tmp_path / "last.pth"))
    boxes = [x.eval()(make_batch())[0]["instances"].scores for x in (plain, d2kd.student(model), deepcopy(model))]
    for scores in boxes[1:]:
        torch.testing.assert_close(scores, boxes[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["all", "backbone"])
def test_a_teacher_that_has_parameters_of_the_student_is_refused_and_they_stay_trained(part):
    student = build_detector("GFL")
    teacher = student if part == "all" else build_detector("GFL", seed=1)
    teacher.backbone = student.backbone
    model = distilled(student, teacher, "bckd").train()
    with pytest.raises(ValueError, match=r"share \d+ parameters, which would be frozen: build the teacher"):
        run_step(model, make_batch())
    assert all(p.requires_grad for p in model.parameters()) and model.backbone.training
