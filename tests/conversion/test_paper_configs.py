"""The configs of the papers' pairs: data, schedules, models, and a step of each family under a converted teacher."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from d2kd.config import distill
from d2kd.conversion import convert, write_checkpoint
from d2kd.engine import check_image_format
from tests.conversion.openmmlab import Spec, random_state
from tests.helpers import make_batch, run_step

COCO = Path(__file__).parents[2] / "configs/coco"
FAMILIES = ("gfl", "atss", "retinanet_openmmlab", "fcos_openmmlab")
LEAVES = [
    *(f"gfl_r{depth}_{method}" for depth in (50, 34, 18) for method in ("ld", "bckd", "crosskd")),
    *(f"{family}_r50_{method}" for family in FAMILIES[1:] for method in ("bckd", "crosskd")),
    "gfl_self_ld_r50",
]
EPOCH = 117266 // 16 + 1


def load(name):
    return LazyConfig.load(str(COCO / f"{name}.py"))


@pytest.mark.parametrize("name", LEAVES)
def test_data_and_schedule(name):
    cfg = load(name)
    epochs, drops = (24, (16, 22)) if name.startswith(("fcos", "retinanet")) else (12, (8, 11))
    fcos = name.startswith("fcos")
    assert cfg.train.max_iter == epochs * EPOCH
    resize, flip = (instantiate(x) for x in cfg.dataloader.train.mapper.augmentations)
    assert list(resize.short_edge_length) == ([640, 800] if fcos else [800]) and resize.max_size == 1333
    assert resize.is_range is False and flip.prob == 0.5
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.dataloader.train.mapper.image_format == cfg.dataloader.test.mapper.image_format
    assert cfg.dataloader.test.mapper.image_format == ("BGR" if fcos else "RGB")
    assert cfg.train.clip_grad == (dict(max_norm=35.0, norm_type=2.0) if fcos else None)

    multiplier = instantiate(cfg.lr_multiplier)

    def at(iteration):
        return multiplier(iteration / cfg.train.max_iter)

    assert at(0) == pytest.approx(1 / 3 if fcos else 0.001)
    assert at(250) == pytest.approx(1 / 3 if fcos else 0.5005)
    assert at(501) == at(drops[0] * EPOCH - 1) == 1
    assert at(drops[0] * EPOCH + 1) == at(drops[1] * EPOCH - 1) == pytest.approx(0.1)
    assert at(drops[1] * EPOCH + 1) == at(cfg.train.max_iter - 1) == pytest.approx(0.01)


@pytest.mark.parametrize("name", LEAVES)
def test_depths_channel_order_and_first_weights(name):
    cfg = load(name)
    student, teacher = cfg.model.student, cfg.model.teacher.model
    depth = next(int(part[1:]) for part in name.split("_") if part[0] == "r" and part[1:].isdigit())
    assert student.backbone.bottom_up.stages.depth == depth
    assert teacher.backbone.bottom_up.stages.depth == (50 if "self" in name else 101)
    assert cfg.train.init_checkpoint == (
        f"output/imagenet/R-{depth}.pkl"
        if depth < 50
        else f"detectron2://ImageNetPretrained/{'MSRA' if name.startswith('fcos') else 'torchvision'}/R-50.pkl"
    )
    assert cfg.train.output_dir == f"output/coco/{name}"
    for node in (student, teacher):
        assert list(node.pixel_mean) == (
            [102.9801, 115.9465, 122.7717] if "fcos" in name else [123.675, 116.28, 103.53]
        )
    student.backbone.bottom_up.stages.depth = 18  # faster to build
    student.backbone.bottom_up.stages.pop("stride_in_1x1", None)
    check_image_format(cfg, instantiate(cfg.model))


def trainable(name):
    model = instantiate(load(name).model)
    return model, {key: value.requires_grad for key, value in model.named_parameters()}


def test_what_of_a_backbone_is_trained():
    """Torchvision's: the affine parameters of res3 on; caffe's: no norm; stem and first stage in neither."""
    model, found = trainable("gfl_r18_ld")
    assert found["backbone.bottom_up.res3.0.conv1.norm.weight"]
    assert not found["backbone.bottom_up.stem.conv1.weight"] and not found["backbone.bottom_up.res2.0.conv1.weight"]
    assert not any(
        ".norm." in key for key in found if key.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2"))
    )
    model, found = trainable("fcos_openmmlab_r50_crosskd")
    assert found["backbone.bottom_up.res3.0.conv1.weight"] and not any("norm" in key for key in found)


def test_weight_decay_and_biases():
    """All parameters decay alike; FCOS's biases do not decay and learn twice as fast."""
    for name, bias in (("gfl_r18_ld", (0.01, 1e-4)), ("fcos_openmmlab_r50_crosskd", (0.02, 0.0))):
        cfg = load(name)
        model = instantiate(cfg.model)
        cfg.optimizer.params.model = model
        names = {parameter: key for key, parameter in model.named_parameters()}
        for group in instantiate(cfg.optimizer).param_groups:
            for parameter in group["params"]:
                expected = bias if names[parameter].endswith(".bias") else (0.01, 1e-4)
                assert (group["lr"], group["weight_decay"]) == expected
                assert group["momentum"] == 0.9


@pytest.mark.parametrize(
    "spec, method",
    [
        (Spec("gfl", width=32), "ld"),
        (Spec("gfl", width=32), "bckd"),
        (Spec("gfl", width=32), "crosskd"),
        (Spec("atss", width=32), "bckd"),
        (Spec("atss", width=32), "crosskd"),
        (Spec("retinanet", width=32, p6_from="c5"), "crosskd"),
        (Spec("fcos", width=32, style="caffe"), "bckd"),
        (Spec("fcos", width=32, style="caffe"), "crosskd"),
        (Spec("fcos", width=32, style="caffe", norm_on_bbox=True, centerness_on_reg=True), "crosskd"),
    ],
    ids=lambda x: x if isinstance(x, str) else f"{x.family}{'-in-strides' * x.norm_on_bbox}",
)
def test_a_converted_teacher_teaches(spec, method, tmp_path):
    """Every term of the method is finite, pulls, and reaches the student."""
    conversion = convert(
        random_state(spec),
        spec.family,
        depth=18,
        centerness_on_reg=spec.centerness_on_reg,
        norm_on_bbox=spec.norm_on_bbox,
    )
    write_checkpoint(conversion.model, tmp_path / "x.pth")
    node = conversion.target.model
    model = instantiate(distill(node, teacher=node, teacher_checkpoint=str(tmp_path / "x.pth"), method=method))
    losses = run_step(model, make_batch(sizes=((96, 128), (128, 100)), objects=3))
    terms = {key: value for key, value in losses.items() if key.startswith("loss_kd_")}
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(value > 0 for key, value in terms.items() if not key.endswith("vlr_kd"))  # whose weight is 0
    sum(terms.values()).backward()
    assert model.backbone.bottom_up.res5[0].conv1.weight.grad.abs().sum() > 0
