"""distill(), the packaged configs, overrides, and training under Detectron2's own loop."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.solver.build import get_default_optimizer_params
from omegaconf import OmegaConf
from torch import nn

import d2kd
from d2kd.config import distill, get_config, get_detectron2_config
from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import LEVELS, PIXELS, build_backbone, build_detector, make_batch, run_step


def retinanet(**changes):
    """A model node as configs write it, with interpolations inside it."""
    model = L(RetinaNet)(
        backbone=L(build_backbone)(width=4),
        head=L(RetinaNetHead)(
            input_shape=[ShapeSpec(channels=8)] * 3,
            num_classes="${..num_classes}",
            num_anchors="${..anchors_per_cell}",
            conv_dims=[8, 8],
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[8, 12], [16, 24], [32, 48]], aspect_ratios=[1.0], strides=[8, 16, 32], offset=0.5
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
        head_in_features=LEVELS,
        num_classes=3,
        **PIXELS,
    )
    model.head.num_anchors = 2
    for key, value in changes.items():
        OmegaConf.update(model, key, value)
    return model


def fcos(**changes):
    model = L(FCOS)(
        backbone=L(build_backbone)(width=4),
        head=L(FCOSHead)(input_shape=[ShapeSpec(channels=8)] * 3, num_classes="${..num_classes}", conv_dims=[8, 8]),
        head_in_features=LEVELS,
        num_classes=3,
        **PIXELS,
    )
    for key, value in changes.items():
        OmegaConf.update(model, key, value)
    return model


def checkpoint_of(node, folder):
    DetectionCheckpointer(instantiate(node), str(folder)).save("teacher")
    return str(folder / "teacher.pth")


# ---- distill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
@pytest.mark.parametrize("build", [retinanet, fcos])
def test_a_wrapped_node_trains(build, method, tmp_path):
    model = instantiate(
        distill(build(), teacher=build(), teacher_checkpoint=checkpoint_of(build(), tmp_path), method=method)
    )
    assert isinstance(model, DistilledDetector)
    losses = run_step(model, make_batch())
    assert [k for k in losses if k.startswith("loss_kd_")] == [f"loss_kd_{method}_cls", f"loss_kd_{method}_loc"]


def test_the_node_given_is_left_as_it_was():
    model, teacher = fcos(), fcos()
    before = OmegaConf.to_container(model, resolve=False)
    node = distill(model, teacher=teacher, teacher_checkpoint="t.pth", method="bckd")
    node.student.num_classes = 9
    node.teacher.model.num_classes = 8
    assert OmegaConf.to_container(model, resolve=False) == before
    assert model.num_classes == teacher.num_classes == 3
    assert node.student.head.num_classes == 9  # interpolations inside the node live on


def test_losses_of_ones_own_and_a_built_teacher():
    losses = dict(mine=L(BinaryClassificationKD)(weight=2.0), off=None)
    teacher = build_detector("FCOS", seed=1)
    model = instantiate(distill(fcos(), teacher=teacher, losses=losses))
    assert list(model.losses) == ["mine"]
    assert run_step(model, make_batch())["loss_kd_mine"].item() > 0
    assert model.teacher.detector is teacher


@pytest.mark.parametrize("kwargs", [dict(), dict(method="bckd", losses={})])
def test_exactly_one_of_method_and_losses(kwargs):
    with pytest.raises(ValueError, match="expected exactly one of them"):
        distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", **kwargs)


def test_an_unknown_method_suggests():
    with pytest.raises(ValueError, match="did you mean bckd"):
        distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", method="bkd")


class Mine(FCOS):
    pass


@pytest.mark.parametrize("target", [FCOS, Mine, "detectron2.modeling.meta_arch.fcos.FCOS"])
def test_a_detector_gets_its_familys_preset(target):
    node = fcos()
    node._target_ = target
    assert distill(node, teacher=fcos(), method="crosskd").losses.crosskd_cls.tail == 2


@pytest.mark.parametrize("node", [dict(a=1), None, "model"])
def test_what_is_no_model_node_is_refused(node):
    with pytest.raises(TypeError, match="Expected model to be a model node with a _target_"):
        distill(node, teacher=fcos(), method="bckd")
    with pytest.raises(TypeError, match="no adapter for torch.nn.*Linear; it reads ATSS, FCOS, GFL, RetinaNet and"):
        distill(L(nn.Linear)(in_features=1, out_features=1), teacher=fcos(), method="bckd")


# ---- references ------------------------------------------------------------------------------------------------------


def config_with(reference, where="head.num_classes", build=fcos, **rest):
    return OmegaConf.create(dict(model=build(**{where: reference}), **rest), flags={"allow_objects": True})


@pytest.mark.parametrize(
    "reference", ["${model.num_classes}", "${dataset.num_classes}", "${..num_classes}", "${...dataset.num_classes}"]
)
def test_references_mean_the_same_after_the_move(reference):
    cfg = config_with(reference, dataset=dict(num_classes=3))
    teacher = fcos(num_classes=3)
    cfg.model = distill(cfg.model, teacher=teacher, teacher_checkpoint="t.pth", method="bckd")
    cfg.dataset.num_classes = 3
    assert cfg.model.student.head.num_classes == 3
    assert instantiate(cfg.model).student.head.cls_score.out_channels == 3


def test_references_of_the_teacher_too():
    cfg = config_with("${model.num_classes}")
    other = config_with("${model.num_classes}")
    other.model.num_classes = 4
    cfg.model = distill(cfg.model, teacher=other.model, teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.student.head.num_classes == 3
    assert cfg.model.teacher.model.head.num_classes == 4


def test_a_node_that_the_teacher_refers_to_keeps_nothing_of_its_config():
    other = config_with("${shared.head}", "head", shared=dict(head=fcos().head, k=3))
    other.shared.head.num_classes = "${shared.k}"  # there is no such key where the teacher goes
    cfg = config_with(3)
    cfg.model = distill(cfg.model, teacher=other.model, teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.teacher.model.head.num_classes == 3


def test_references_to_nodes_and_in_lists():
    cfg = config_with("${widths.head}", "head.conv_dims", widths=dict(head=[8, 8]))
    cfg.model.pixel_std = [1.0, "${std}", 1.0]
    cfg.std = 2.0
    cfg.model = distill(cfg.model, teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.student.head.conv_dims == [8, 8]
    assert cfg.model.student.pixel_std == [1.0, 2.0, 1.0]
    assert instantiate(cfg.model).student.pixel_std.flatten().tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("reference", ["${shared.k}", "${..k}", "${shared.aliases.k}"])
def test_a_node_referred_to_brings_its_own_references(reference):
    cfg = config_with("${shared.head}", "head", shared=dict(head=fcos().head, k=3, aliases=dict(k="${shared.k}")))
    cfg.shared.head.num_classes = reference
    cfg.model = distill(cfg.model, teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")
    assert cfg.model.student.head.num_classes == 3


@pytest.mark.parametrize("reference", ["${model.num_classes}", "${....dataset.num_classes}"])
def test_a_reference_that_leads_nowhere_is_refused_in_a_sentence(reference):
    node = fcos(**{"head.num_classes": reference})  # alone: there is no ${model} around it
    with pytest.raises(ValueError) as error:
        distill(node, teacher=fcos(), method="bckd")
    assert str(error.value) == (
        f"model.head.num_classes is '{reference}', which cannot be resolved before model moves under model.student: "
        "give it a value."
    )
    with pytest.raises(ValueError, match=r"teacher.head.num_classes .* moves under model.teacher.model"):
        distill(fcos(), teacher=node, method="bckd")


# ---- overrides -------------------------------------------------------------------------------------------------------


def overridden(*overrides):
    cfg = OmegaConf.create(
        dict(model=distill(fcos(), teacher=fcos(), teacher_checkpoint="t.pth", method="bckd")),
        flags={"allow_objects": True},
    )
    return LazyConfig.apply_overrides(cfg, list(overrides)).model


@pytest.mark.parametrize(
    "overrides, names",
    [
        (["model.losses=null"], []),
        (["model.losses.bckd_loc=null"], ["bckd_cls"]),
        (["model.losses={}"], ["bckd_cls", "bckd_loc"]),  # merges: changes nothing
        (["model.losses.bckd_cls.weight=0.5"], ["bckd_cls", "bckd_loc"]),
    ],
)
def test_overrides(overrides, names):
    model = instantiate(overridden(*overrides))
    assert list(model.losses) == names
    assert (model.teacher is None) == (not names)
    if "0.5" in overrides[0]:
        assert model.losses["bckd_cls"].weight == 0.5


# ---- packaged configs ------------------------------------------------------------------------------------------------


def test_packaged_configs_are_found_by_name():
    assert get_config("common/train.py").train.max_iter > 0
    assert d2kd.get_config is get_config and d2kd.distill is distill
    assert get_detectron2_config("common/models/retinanet.py").model.num_classes == 80


@pytest.mark.parametrize("get, package", [(get_config, "d2kd"), (get_detectron2_config, "detectron2")])
def test_an_unknown_packaged_config_lists_those_that_are(get, package):
    with pytest.raises(FileNotFoundError, match=f"{package} has no config 'common/trian.py'; it has .*common/train.py"):
        get("common/trian.py")


# ---- Detectron2's own training script --------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", ["distilled", "baseline"])
def test_a_distilled_config_trains_under_detectron2s_lazyconfig_loop(tmp_path, losses):
    """The steps of do_train in Detectron2's tools/lazyconfig_train_net.py, which is no part of its package."""
    cfg = get_detectron2_config("common/train.py")
    cfg.model = distill(
        retinanet(), teacher=retinanet(), teacher_checkpoint=checkpoint_of(retinanet(), tmp_path), method="crosskd"
    )
    if losses == "baseline":
        cfg.model.losses = None
    cfg.optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(weight_decay_norm=0.0), lr=0.01)
    cfg.train.update(output_dir=str(tmp_path), max_iter=3, device="cpu", eval_period=2, log_period=1)
    cfg.train.checkpointer.period = 3

    model = instantiate(cfg.model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optim = instantiate(cfg.optimizer)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = SimpleTrainer(model, [make_batch(seed=i) for i in range(3)], optim)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results = []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(get_config("common/optim.py").steps)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, lambda: results.append(evaluate(model))),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period
            ),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trainer.train(0, cfg.train.max_iter)

    terms = {"loss_kd_crosskd_cls", "loss_kd_crosskd_loc"} if losses == "distilled" else set()
    for line in (tmp_path / "metrics.json").read_text().splitlines():
        metrics = json.loads(line)
        assert {k for k in metrics if k.startswith("loss_kd_")} == terms
        assert metrics["total_loss"] > 0
    assert results == [2, 2]
    stock = instantiate(retinanet())
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    own = {k for k in saved if k.startswith("distillation.")}
    stock.load_state_dict({k: v for k, v in saved.items() if k not in own}, strict=True)
    assert own == {"distillation.loss_normalizer"}


def evaluate(model):
    model.eval()
    outputs = model(make_batch())
    model.train()
    return len(outputs)
