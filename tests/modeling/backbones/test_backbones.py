"""Backbones of every family that Detectron2 ships, on either side, and canvases and norms that differ."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from detectron2.modeling.backbone import FPN, MViT, RegNet, ResNet, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock

from d2kd.modeling.backbones import group_norm
from tests.helpers import build_backbone, build_detector, distilled, gradients, make_batch, reached, run_step

#: Channels of every pyramid; strides are 8, 16 and 32.
WIDTH = 8


def resnet(norm="BN", fpn_norm=""):
    stages = [
        ResNet.make_stage(
            BottleneckBlock, 1, in_channels=i, bottleneck_channels=4, out_channels=o, stride_per_block=[s], norm=norm
        )
        for i, o, s in ((4, 8, 1), (8, 12, 2), (12, 16, 2), (16, 20, 2))
    ]
    names = ["res3", "res4", "res5"]
    return FPN(ResNet(BasicStem(3, 4, norm=norm), stages, out_features=names), names, WIDTH, norm=fpn_norm)


def regnet():
    bottom_up = RegNet(
        stem_class=SimpleStem, stem_width=4, block_class=ResBottleneckBlock, depth=8, w_a=8, w_0=8, w_m=2,
        group_width=4, norm="BN", out_features=["s2", "s3", "s4"],
    )  # fmt: skip
    return FPN(bottom_up, ["s2", "s3", "s4"], WIDTH)


def swin():
    bottom_up = SwinTransformer(
        embed_dim=4, depths=(2, 1, 1, 1), num_heads=(1, 1, 2, 2), window_size=3, drop_path_rate=0.2,
        out_indices=(1, 2, 3),
    )  # fmt: skip
    return FPN(bottom_up, ["p1", "p2", "p3"], WIDTH)


def mvit():
    names = ["scale3", "scale4", "scale5"]
    bottom_up = MViT(
        img_size=64, embed_dim=4, depth=4, num_heads=1, last_block_indexes=(0, 1, 2, 3), adaptive_window_size=8,
        drop_path_rate=0.2, out_features=names,
    )  # fmt: skip
    return FPN(bottom_up, names, WIDTH)


def vit(square_pad=0):
    net = ViT(
        img_size=64, embed_dim=8, depth=2, num_heads=2, window_size=2, window_block_indexes=(0,), use_rel_pos=True,
        drop_path_rate=0.2, pretrain_img_size=32,
    )  # fmt: skip
    return SimpleFeaturePyramid(net, "last_feat", WIDTH, scale_factors=(2.0, 1.0, 0.5), square_pad=square_pad)


FAMILIES = dict(resnet=resnet, regnet=regnet, swin=swin, mvit=mvit, vit=vit)
#: student, teacher: every family meets a ResNet of another divisibility, on either side.
PAIRS = {
    **{f"{name} student": (build, build_backbone) for name, build in FAMILIES.items()},
    **{f"{name} teacher": (build_backbone, build) for name, build in FAMILIES.items()},
}
#: Height and width of two images, neither a multiple of 16; the batch is 48 x 60.
SIZES = [(40, 52), (48, 60)]


def detector(family, build, seed):
    torch.manual_seed(seed)
    return build_detector(family, backbone=build(), seed=seed)


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
@pytest.mark.parametrize("family", ["RetinaNet", "FCOS"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_step_with_either_role(pair, family, method):
    student, teacher = (detector(family, build, seed) for seed, build in enumerate(PAIRS[pair]))
    stock = deepcopy(student)
    model = distilled(student, teacher, method)
    teachers_weights = deepcopy(teacher.state_dict())
    batch = make_batch(SIZES)

    # Two steps on one stream of random numbers: stochastic depth must draw the same with a teacher as without.
    torch.manual_seed(0)
    expected = [run_step(stock, batch, step) for step in range(2)]
    random_state = torch.get_rng_state()
    torch.manual_seed(0)
    found = [run_step(model, batch, step) for step in range(2)]
    assert torch.equal(torch.get_rng_state(), random_state)
    for alone, together in zip(expected, found, strict=True):
        assert all(value.isfinite() for value in together.values())
        for name, value in alone.items():
            assert torch.equal(together[name], value), name

    terms = [name for name in found[-1] if name.startswith("loss_kd_")]
    assert len(terms) == len(model.losses) == 2
    by_labels = reached(gradients(model.backbone, sum(found[-1][name] for name in expected[-1])))
    assert len(by_labels) > 10
    for name in terms:
        assert found[-1][name] > 0
        assert reached(gradients(model.backbone, found[-1][name])) == by_labels
    sum(found[-1].values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, teachers_weights[name]) for name, value in teacher.state_dict().items())


#: student, teacher -> (H, W) that either's backbone sees of the 48 x 60 batch.
CANVASES = {
    "16 and 32": (build_backbone, resnet, (48, 64), (64, 64)),
    "32 and 16": (resnet, build_backbone, (64, 64), (64, 64)),
    # Detectron2 does not read the key that its ViT pyramid misspells, so it pads such a student's images to nothing.
    "none and 16": (vit, build_backbone, (48, 60), (48, 64)),
    "none and none": (vit, vit, (48, 60), (64, 64)),
    "16 and a misspelt 32": (build_backbone, vit, (48, 64), (64, 64)),
    "16 and a square": (build_backbone, partial(vit, square_pad=96), (48, 64), (96, 96)),
    "a square and 32": (partial(vit, square_pad=80), resnet, (80, 80), (96, 96)),
    "a square and none": (partial(build_backbone, square_pad=64), vit, (64, 64), (64, 64)),
    "two squares": (partial(vit, square_pad=64), partial(vit, square_pad=96), (64, 64), (96, 96)),
    "a square that is no multiple of 32": (build_backbone, partial(vit, square_pad=80), (48, 64), (96, 96)),
}


def watch_canvas(backbone):
    seen = []
    backbone.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    return seen


@pytest.mark.parametrize("method", ["bckd", "crosskd"])
@pytest.mark.parametrize("case", CANVASES)
def test_canvases(case, method):
    ours, theirs, students_canvas, teachers_canvas = CANVASES[case]
    student, teacher = detector("FCOS", ours, 0), detector("FCOS", theirs, 1)
    stock, batch = deepcopy(student), make_batch(SIZES)
    alone = watch_canvas(stock.backbone)
    torch.manual_seed(0)
    expected = run_step(stock, batch)
    model = distilled(student, teacher, method)
    seen = [watch_canvas(x.backbone) for x in (student, teacher)]
    outputs = {}
    (name, loss), *_ = model.losses.items()
    loss.register_forward_pre_hook(lambda m, args: outputs.update(ours=args[0], theirs=args[1]))
    torch.manual_seed(0)
    losses = run_step(model, batch)
    assert alone == [students_canvas]
    assert seen == [[students_canvas], [teachers_canvas]]
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    assert all(value.isfinite() for value in losses.values())
    assert losses[f"loss_kd_{name}"] > 0
    # Cell by cell, the two speak of the same pixels.
    assert outputs["ours"].sizes == outputs["theirs"].sizes
    for a, b in zip(outputs["ours"].anchors, outputs["theirs"].anchors, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ours, canvas", [(resnet, "64x96"), (build_backbone, "48x80")])
def test_a_square_teacher_smaller_than_the_students_canvas_is_refused(ours, canvas):
    model = distilled(detector("FCOS", ours, 0), detector("FCOS", partial(vit, square_pad=64), 1), "bckd")
    with pytest.raises(ValueError) as error:
        run_step(model, make_batch([(40, 52), (48, 70)]))
    assert f"squares of 64 pixels, but the student's canvas is {canvas}: resize the training images" in str(error.value)


NORMS = {"BN": "BN", "GN": group_norm(2), "LN": "LN", "FrozenBN": "FrozenBN", "none": ""}


@pytest.mark.parametrize("teachers", NORMS)
@pytest.mark.parametrize("students", NORMS)
def test_norms_in_any_mix(students, teachers):
    """In the ResNet, the FPN and the towers; "BN" in a RetinaNet's towers is one norm a level."""
    student, teacher = (
        build_detector("RetinaNet", seed=seed, norm=NORMS[norm], backbone=resnet(NORMS[norm], NORMS[norm]))
        for seed, norm in enumerate((students, teachers))
    )
    stock, teachers_weights = deepcopy(student), deepcopy(teacher.state_dict())
    batch = make_batch(SIZES)
    expected = run_step(stock, batch)
    losses = run_step(distilled(student, teacher, "crosskd"), batch)
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    for name in ("loss_kd_crosskd_cls", "loss_kd_crosskd_loc"):
        assert losses[name].isfinite() and losses[name] > 0
    sum(losses[name] for name in losses.keys() - expected.keys()).backward()
    assert student.backbone.bottom_up.stem.conv1.weight.grad.count_nonzero()
    assert all(torch.equal(value, teachers_weights[name]) for name, value in teacher.state_dict().items())
