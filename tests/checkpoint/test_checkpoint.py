"""Every checkpoint of a distilled run is one of the plain student, and the other way round."""

import logging
import os
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, run_step
from tests.yacs_projects import wrapped


class Scaled(BinaryClassificationKD):
    """A term with something to learn, so that distillation.* holds more than the normaliser."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def level_loss(self, *args):
        return self.scale * super().level_loss(*args)


def trained(family="FCOS", seed=0):
    """A distilled detector after one step."""
    model = distilled(build_detector(family, seed=seed), build_detector(family, seed=1), dict(kd=Scaled()))
    sum(run_step(model, make_batch()).values()).backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    return model


def load(model, path, **kwargs):
    """What DetectionCheckpointer says about loading ``path`` into ``model``."""
    checkpointer = DetectionCheckpointer(model)
    said = []
    checkpointer._log_incompatible_keys = said.append
    checkpointer.load(str(path), **kwargs)
    return said[0]


def save(model, folder, name="model"):
    DetectionCheckpointer(model, str(folder)).save(name)
    return folder / f"{name}.pth"


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    for name, value in a.items():
        if not name.startswith("distillation."):
            assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_are_the_students_and_those_of_distillation(family):
    model, stock = trained(family), build_detector(family)
    keys = list(model.state_dict())
    own = [k for k in keys if k.startswith("distillation.")]
    assert [k for k in keys if k not in own] == list(stock.state_dict())
    state = ["positives_per_image", "loss_normalizer_0", "losses.kd.scale"]
    assert own == [f"distillation.{name}" for name in state]
    assert [n for n, _ in model.named_parameters() if n not in own] == [n for n, _ in stock.named_parameters()]
    modules = [n for n, _ in model.named_modules() if not n.startswith("distillation")]
    assert modules == [n for n, _ in stock.named_modules()]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stock_detector_loads_it(family, tmp_path):
    model, stock = trained(family), build_detector(family, seed=9)
    incompatible = load(stock, save(model, tmp_path))
    assert not incompatible.missing_keys and not incompatible.incorrect_shapes
    assert all(k.startswith("distillation.") for k in incompatible.unexpected_keys)
    assert_same_weights(stock, model)


def test_a_stock_checkpoint_loads_strictly():
    stock, model = build_detector("FCOS", seed=9), trained()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("distillation.")}
    weights = stock.state_dict()
    given = list(weights)
    result = model.load_state_dict(weights, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(weights) == given  # what the caller holds is not filled
    assert_same_weights(stock, model)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_missing_or_unknown_student_key_is_still_reported():
    weights = build_detector("FCOS").state_dict()
    del weights["head.ctrness.bias"]
    weights["head.other"] = torch.zeros(1)
    result = trained().load_state_dict(weights, strict=False)
    assert result.missing_keys == ["head.ctrness.bias"]
    assert result.unexpected_keys == ["head.other"]
    with pytest.raises(RuntimeError, match="head.ctrness.bias"):
        trained().load_state_dict(weights)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.Sequential], ids=["alone", "nested"])
def test_a_shape_mismatched_load_keeps_going(tmp_path, caplog, wrap):
    path = save(wrap(build_detector("FCOS", num_classes=5, seed=9)), tmp_path)
    model = trained()
    bias = model.head.cls_score.bias.detach().clone()
    checkpointer = DetectionCheckpointer(wrap(model))
    caplog.clear()  # which teacher was loaded
    with caplog.at_level(logging.WARNING):
        checkpointer.load(str(path))
    assert "Skip loading parameter" in caplog.text and "head.cls_score.bias" in caplog.text
    assert torch.equal(model.head.cls_score.bias, bias)
    assert torch.equal(model.head.ctrness.weight, build_detector("FCOS", seed=9, num_classes=5).head.ctrness.weight)
    assert not any("distillation" in record.getMessage() for record in caplog.records)


def test_nested_in_another_module():
    model, stock = nn.ModuleDict({"detector": trained()}), build_detector("FCOS", seed=9)
    state = ["positives_per_image", "loss_normalizer_0", "losses.kd.scale"]
    own = [f"detector.distillation.{name}" for name in state]
    assert list(model.state_dict()) == [f"detector.{k}" for k in stock.state_dict()] + own
    result = model.load_state_dict({f"detector.{k}": v for k, v in stock.state_dict().items()})
    assert not result.missing_keys
    assert_same_weights(stock, model["detector"])


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_names_under_ddp(process_group, tmp_path):
    model = trained()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    assert [n for n, _ in wrapped.named_parameters()] == [f"module.{n}" for n, _ in model.named_parameters()]
    assert list(wrapped.state_dict()) == [f"module.{n}" for n in model.state_dict()]
    sum(run_step(wrapped, make_batch()).values()).backward()
    # A checkpointer looks through DDP.
    stock = build_detector("FCOS", seed=9)
    assert not load(stock, save(wrapped, tmp_path)).missing_keys
    assert_same_weights(stock, model)
    load(wrapped, save(build_detector("FCOS", seed=4), tmp_path, "other"))
    assert_same_weights(build_detector("FCOS", seed=4), model)


def test_the_file_is_no_larger_than_the_undistilled_runs(tmp_path):
    student = build_detector("FCOS")
    teacher = build_detector("FCOS", width=16, conv_dims=[8] * 6)
    distilled_run, alone = distilled(student, teacher, "bckd"), distilled(build_detector("FCOS"))
    for name, model in (("distilled", distilled_run), ("alone", alone)):
        run_step(model, make_batch())
        save(model, tmp_path, name)
    sizes = {name: os.path.getsize(tmp_path / f"{name}.pth") for name in ("distilled", "alone")}
    assert abs(sizes["distilled"] - sizes["alone"]) < 1024  # names in the archive's records


@pytest.mark.parametrize("restart", ["same process", "new model"])
def test_the_loss_normaliser_is_restored_exactly(tmp_path, restart):
    model = distilled(build_detector("RetinaNet"))
    for step in range(3):
        run_step(model, make_batch(seed=step))
    value = model.student.loss_normalizer
    assert float(torch.tensor(value, dtype=torch.float32)) != value  # fp32 could not hold it
    path = save(model, tmp_path)
    expected = run_step(model, make_batch(seed=7))
    following = model.student.loss_normalizer
    if restart == "new model":
        model = distilled(build_detector("RetinaNet", seed=3))
    load(model, path)
    found = run_step(model, make_batch(seed=7))
    assert model.student.loss_normalizer == following != value
    assert all(torch.equal(found[name], loss) for name, loss in expected.items())


def test_the_loss_normaliser_is_restored_once():
    """The step after a load starts from the checkpoint's value, the one after that from its own."""
    model, resumed = distilled(build_detector("FCOS")), distilled(build_detector("FCOS"))
    run_step(model, make_batch())
    resumed.load_state_dict(model.state_dict())
    for step in (1, 2):
        for m in (model, resumed):
            run_step(m, make_batch(seed=step))
        assert resumed.student.loss_normalizer == model.student.loss_normalizer
    # With several ranks a student's own value is not the mean that is saved: it must not be put back every step.
    resumed.student.loss_normalizer = 5.0
    resumed.distillation.restore_normalizer(resumed.student)
    assert resumed.student.loss_normalizer == 5.0


def test_another_number_of_ranks_takes_the_mean_of_the_normalisers(caplog):
    model = trained()
    state = model.state_dict()
    state["distillation.loss_normalizer_0"], state["distillation.loss_normalizer_1"] = torch.tensor([3.0, 6.0]).double()
    with caplog.at_level("INFO"):
        assert not model.load_state_dict(state).unexpected_keys
    assert "The checkpoint has loss normalisers of 2 ranks, this run has 1: each takes their mean, 4.50" in caplog.text
    model.distillation.restore_normalizer(model.student)
    assert model.student.loss_normalizer == 4.5


def test_ranks_may_be_known_after_the_model_was_built(monkeypatch):
    model = trained()
    value = model.student.loss_normalizer
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    model.distillation.keep(torch.tensor([value, 2.0]).double(), torch.zeros(2).double())
    assert model.state_dict()["distillation.loss_normalizer_1"] == 2.0


def test_checkpoints_without_a_normaliser_leave_the_students():
    model, other = trained(), trained()
    model.load_state_dict(build_detector("FCOS").state_dict())
    other.load_state_dict(build_detector("FCOS").state_dict())
    del other.student.loss_normalizer  # what Detectron2 starts with, 300
    for m in (model, other):
        run_step(m, make_batch())
    assert model.student.loss_normalizer < other.student.loss_normalizer
    # A run saved before its first step has none either.
    loaded, fresh = distilled(build_detector("FCOS")), distilled(build_detector("FCOS"))
    loaded.load_state_dict(fresh.state_dict())
    run_step(loaded, make_batch())
    assert loaded.student.loss_normalizer == other.student.loss_normalizer


def test_half_precision_does_not_round_the_normaliser():
    model = trained()
    value = model.student.loss_normalizer
    for cast in (model.half, model.bfloat16, model.float):
        cast()
        assert model.distillation.loss_normalizer_0.dtype == torch.float64
        assert model.distillation.loss_normalizer_0.item() == value
    assert model.distillation.losses["kd"].scale.dtype == torch.float32


def yacs_retinanet():
    """Detectron2's own RetinaNet config at its smallest: ResNet-18 and a narrow FPN."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.26, x * 1.59] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 64
    return cfg


def test_default_predictor_reads_a_retinanet_checkpoint(tmp_path):
    cfg = yacs_retinanet()
    model = DistilledDetector(
        student=build_model(cfg), teacher=dict(model=build_model(cfg)), losses=dict(kd=BinaryClassificationKD())
    )
    run_step(model, make_batch())
    cfg.MODEL.WEIGHTS = str(save(model, tmp_path))
    predictor = DefaultPredictor(cfg)
    assert type(predictor.model) is META_ARCH_REGISTRY.get("RetinaNet")
    image = make_batch([(64, 64)])[0]["image"]
    found = predictor(image.permute(1, 2, 0).numpy())["instances"]
    expected = model.eval()([dict(image=image, height=64, width=64)])[0]["instances"]
    assert len(expected) > 0
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_an_imagenet_backbone_loads_by_heuristics(tmp_path):
    """Its keys lack the prefix "backbone.bottom_up."; only the suffix matches."""
    source = build_detector("FCOS", seed=9).backbone.bottom_up.state_dict()
    path = tmp_path / "backbone.pkl"
    with open(path, "wb") as file:
        weights = {k: v.numpy() for k, v in source.items()}
        pickle.dump({"model": weights, "__author__": "torchvision", "matching_heuristics": True}, file)
    model, stock = trained(), build_detector("FCOS")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    reported = [load(m, path).missing_keys for m in (model, stock)]
    assert reported[0] == reported[1]
    for name, value in model.state_dict().items():
        suffix = name.removeprefix("backbone.bottom_up.")
        expected = source[suffix] if name != suffix else before[name]
        assert torch.equal(value, expected), name


def test_its_name_in_a_yacs_config_builds_it():
    assert type(build_model(wrapped())) is DistilledDetector


def test_a_child_named_distillation_is_refused():
    student = build_detector("FCOS")
    student.distillation = nn.Identity()
    with pytest.raises(ValueError, match="has a child named 'distillation'"):
        distilled(student)


def test_the_students_own_load_hooks_work():
    """A detector that renames old keys when it loads still does so as a student."""
    student = build_detector("FCOS")

    def rename(module, state_dict, prefix, *args):
        state_dict[prefix + "head.ctrness.bias"] = state_dict.pop(prefix + "head.old_name")

    student.register_load_state_dict_pre_hook(rename)
    old = {k: v.clone() for k, v in build_detector("FCOS", seed=1).state_dict().items()}
    old["head.old_name"] = old.pop("head.ctrness.bias") + 5
    model = DistilledDetector(student=student)
    model.load_state_dict(old)
    assert model.head.ctrness.bias.equal(old["head.old_name"])
