"""The teacher: loaded or refused, frozen and invisible."""

import logging
import pickle
from copy import deepcopy

import pytest
import torch
from detectron2.config import LazyCall as L
from torch import nn

from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import PIXELS, build_detector, distilled, gradients, make_batch, run_step


def node(family="FCOS", **kwargs):
    return L(build_detector)(family=family, **kwargs)


def save(detector, path, change=lambda weights: None):
    weights = detector.state_dict()
    change(weights)
    torch.save({"model": weights}, path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path):
    return save(build_detector("FCOS", seed=1), tmp_path / "teacher.pth")


def model_with(checkpoint, teacher=None, losses=None, **kwargs):
    return DistilledDetector(
        student=node(seed=0),
        teacher=dict(model=teacher or node(seed=7), checkpoint=checkpoint, engine="eager"),
        losses=losses or dict(kd=L(BinaryClassificationKD)(weight=1.0)),
        **kwargs,
    )


def test_it_is_built_and_loaded_once_from_its_checkpoint(checkpoint, tmp_path):
    model = model_with(checkpoint)
    assert not model.teacher.is_loaded
    with pytest.raises(RuntimeError, match="call load_teacher"):
        model.teacher.detector  # noqa: B018
    model.load_teacher()
    teacher = model.teacher.detector
    expected = build_detector("FCOS", seed=1).state_dict()
    assert teacher.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in teacher.state_dict().items())
    (tmp_path / "teacher.pth").unlink()
    model.load_teacher()
    run_step(model, make_batch())
    assert model.teacher.detector is teacher


def test_averaged_weights_are_used_or_mentioned(checkpoint, caplog):
    content = torch.load(checkpoint)
    torch.save({**content, "ema": build_detector("FCOS", seed=2).state_dict()}, checkpoint)
    model = model_with(checkpoint)
    with caplog.at_level(logging.WARNING):
        model.load_teacher()
    assert "also has averaged weights (ema); the teacher has those of 'model': model.teacher.weights=ema" in caplog.text
    assert torch.equal(model.teacher.detector.head.cls_score.weight, content["model"]["head.cls_score.weight"])
    caplog.clear()
    teacher = dict(model=node(seed=7), checkpoint=checkpoint, engine="eager", weights="ema")
    model = DistilledDetector(student=node(seed=0), teacher=teacher, losses=dict(kd=L(BinaryClassificationKD)()))
    with caplog.at_level(logging.WARNING):
        model.load_teacher()
    assert "averaged" not in caplog.text
    expected = build_detector("FCOS", seed=2).head.cls_score.weight
    assert torch.equal(model.teacher.detector.head.cls_score.weight, expected)


def test_a_path_may_have_the_query_that_detectron2_reads(checkpoint):
    model = model_with(f"{checkpoint}?matching_heuristics=True")
    model.load_teacher()
    found, expected = model.teacher.detector.state_dict(), build_detector("FCOS", seed=1).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_step_loads_it_if_nobody_did(checkpoint):
    model = model_with(checkpoint)
    assert run_step(model, make_batch())["loss_kd_kd"].item() > 0
    assert model.teacher.is_loaded


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda w: w.pop("head.cls_score.bias"), "missing, 1: head.cls_score.bias"),
        (lambda w: w.update({"head.other": torch.zeros(1)}), "unexpected, 1: head.other"),
        (
            lambda w: w.update({"head.cls_score.bias": torch.zeros(7)}),
            "another number of classes: head.cls_score.bias (checkpoint (7,), model (3,))",
        ),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, named):
    model = model_with(save(build_detector("FCOS"), tmp_path / "teacher.pth", change))
    for _ in range(2):
        with pytest.raises(ValueError, match="checkpoint does not fit|is a checkpoint of a detector with") as error:
            model.load_teacher()
        assert named in str(error.value)
        assert "model.teacher.checkpoint" in str(error.value)
    assert not model.teacher.is_loaded


def test_every_key_of_a_wrong_architecture_is_listed(tmp_path):
    model = model_with(save(build_detector("RetinaNet"), tmp_path / "teacher.pth"))
    with pytest.raises(ValueError) as error:
        model.load_teacher()
    for key in ("head.ctrness.weight", "head.ctrness.bias", "head.cls_score.weight (checkpoint (6, 8, 3, 3)"):
        assert key in str(error.value)


def test_keys_that_hold_nothing_trained_may_be_missing_or_left_over(tmp_path):
    def change(weights):
        for key in [k for k in weights if k.endswith("num_batches_tracked")]:
            del weights[key]
        weights["pixel_mean"], weights["pixel_std"] = torch.tensor([PIXELS["pixel_mean"], PIXELS["pixel_std"]])
        weights["anchor_generator.cell_anchors.0"] = torch.zeros(1, 4)
        weights["distillation.loss_normalizer_0"] = torch.tensor(5.0)
        weights["distillation.losses.kd.scale"] = torch.tensor(5.0)

    model = model_with(save(build_detector("FCOS", seed=1), tmp_path / "teacher.pth", change))
    model.load_teacher()
    assert torch.equal(model.teacher.detector.pixel_mean, build_detector("FCOS").pixel_mean)


def test_only_keys_that_begin_with_distillation_are_left_over(tmp_path):
    path = tmp_path / "teacher.pth"
    save(build_detector("FCOS", seed=1), path, lambda weights: weights.update({"distillation.x": torch.zeros(1)}))
    model_with(str(path)).load_teacher()
    save(build_detector("FCOS", seed=1), path, lambda weights: weights.update({"head.distillation.x": torch.zeros(1)}))
    with pytest.raises(ValueError, match="unexpected, 1: head.distillation.x"):
        model_with(str(path)).load_teacher()


def test_a_missing_file_is_named():
    model = model_with("/nowhere/teacher.pth")
    with pytest.raises(FileNotFoundError, match="model.teacher.checkpoint is '/nowhere/teacher.pth'"):
        model.load_teacher()


@pytest.mark.parametrize("checkpoint", [None, ""])
def test_a_model_node_needs_a_checkpoint(checkpoint):
    with pytest.raises(ValueError, match=f"model.teacher.checkpoint is {checkpoint!r}, expected a path or URL"):
        model_with(checkpoint)


def test_evaluation_checkpoints_and_baselines_do_without_its_file(tmp_path):
    model = model_with("/nowhere/teacher.pth").eval()
    assert len(model(make_batch())) == 2
    model.load_state_dict(build_detector("FCOS", seed=3).state_dict())
    baseline = DistilledDetector(
        student=node(), teacher=dict(model=node(), checkpoint="/nowhere/teacher.pth"), losses={"kd": None}
    )
    baseline.load_teacher()
    assert run_step(baseline, make_batch()).keys() == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert baseline.teacher is None


def test_it_is_invisible_and_frozen(checkpoint):
    model, baseline = model_with(checkpoint), DistilledDetector(student=node(seed=0))
    names = [[n for n, _ in f(model)] for f in (nn.Module.named_parameters, nn.Module.named_modules)]
    model.load_teacher()
    assert names == [[n for n, _ in f(model)] for f in (nn.Module.named_parameters, nn.Module.named_modules)]
    for listing in (nn.Module.named_parameters, nn.Module.named_buffers):
        assert [n for n, _ in listing(model)] == [n for n, _ in listing(baseline)]
    assert model.state_dict().keys() == baseline.state_dict().keys()
    teacher = model.teacher.detector
    hidden = {id(m) for m in teacher.modules()}
    assert not hidden & {id(m) for m in model.modules()}
    for mode in (True, False, True):
        model.train(mode)
        assert not any(m.training for m in teacher.modules())
    assert all(m.training for m in model.student.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.half])
def test_it_follows_the_models_dtype(checkpoint, dtype, when):
    model = model_with(checkpoint)
    if when == "after":
        model.load_teacher()
    model.to(dtype)
    model.load_teacher()
    tensors = [*model.teacher.detector.parameters(), *model.teacher.detector.buffers()]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}
    assert model.student.pixel_mean.dtype == dtype
    if dtype == torch.float64:
        assert run_step(model, make_batch())["loss_kd_kd"].item() > 0


def test_random_state_is_that_of_the_baseline(checkpoint):
    states = []
    for losses in (None, dict(kd=L(BinaryClassificationKD)(weight=1.0), learned=L(WithRandomWeights)())):
        torch.manual_seed(3)
        model = DistilledDetector(
            student=L(draw)(), teacher=dict(model=node(seed=7), checkpoint=checkpoint), losses=losses
        )
        built = torch.get_rng_state()
        model.load_teacher()
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("distillation.")}
        states.append((built, torch.get_rng_state(), weights))
    for a, b in zip(states[0][:2], states[1][:2], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(states[0][0], states[0][1])
    for name, value in states[0][2].items():
        assert torch.equal(value, states[1][2][name]), name


def draw():
    """A detector from the process's random state, as configs build it."""
    seed = int(torch.randint(0, 1000, ()))
    detector = build_detector("FCOS", seed=seed)
    torch.manual_seed(seed)
    return detector


class WithRandomWeights(BinaryClassificationKD):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(4))


@pytest.mark.parametrize("copy", [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_have_none(copy):
    model = distilled(build_detector("FCOS", test_score_thresh=0.0), build_detector("FCOS", seed=1), "bckd")
    run_step(model, make_batch())
    copied = copy(model)
    assert copied.teacher is None
    assert model.teacher.is_loaded
    assert copied.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(RuntimeError, match="copies have no teacher: train the original"):
        run_step(copied, make_batch())
    # In eval mode a copy is a detector of its own.
    boxes = [m.eval()(make_batch())[0]["instances"].pred_boxes.tensor for m in (model, copied)]
    assert len(boxes[0]) and torch.equal(*boxes)
    copied.head.cls_score.bias.data.zero_()
    assert copied.student.head.cls_score.bias.count_nonzero() == 0
    assert model.head.cls_score.bias.count_nonzero()
    copied.pixel_mean.zero_()
    assert copied.student.pixel_mean.count_nonzero() == 0
    assert model.student.pixel_mean.count_nonzero()


def test_it_runs_without_a_graph():
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "crosskd")
    seen = {}
    for name, loss in model.losses.items():
        loss.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args}))
    losses = run_step(model, make_batch())
    for source, teacher, *_ in seen.values():
        assert not any(x.requires_grad for x in teacher.logits + teacher.box_params + teacher.centerness)
        assert all(x.requires_grad for x in source.logits + source.box_params)
    assert gradients(model, losses["loss_kd_crosskd_cls"])["head.cls_subnet.0.weight"].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_their_keys(tmp_path, value):
    def change(weights):
        weights["head.cls_score.bias"][1] = value
        weights["backbone.bottom_up.stem.conv1.norm.running_var"][0] = value

    model = model_with(save(build_detector("FCOS"), tmp_path / "teacher.pth", change))
    with pytest.raises(ValueError, match="weights that are not finite, 2") as error:
        model.load_teacher()
    for named in ("head.cls_score.bias", "backbone.bottom_up.stem.conv1.norm.running_var", "teacher.pth"):
        assert named in str(error.value)
    assert not model.teacher.is_loaded


@pytest.mark.parametrize("name", PIXELS)
def test_a_checkpoints_own_pixel_statistics_are_compared(tmp_path, name):
    """Detectron2 takes them from the config and drops the checkpoint's."""

    def change(weights):
        weights[name] = torch.tensor([0.0, 1.0, 255.0]).view(3, 1, 1)

    model = model_with(save(build_detector("FCOS"), tmp_path / "teacher.pth", change))
    with pytest.raises(ValueError, match=rf"was trained with {name} \[0.0, 1.0, 255.0\]") as error:
        model.load_teacher()
    assert f"model.teacher.model.{name} is {PIXELS[name]}" in str(error.value)


def test_pixel_statistics_may_be_integers(tmp_path):
    """As a command line has them: model.teacher.model.pixel_mean=[0,0,0]."""
    whole = dict(pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1])
    model = distilled(build_detector("FCOS", **whole), build_detector("FCOS", seed=1, **whole), "bckd").train()
    plain = distilled(build_detector("FCOS", pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)).train()
    expected, losses = run_step(plain, make_batch()), run_step(model, make_batch())
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    assert model.teacher.detector.pixel_mean.is_floating_point()
