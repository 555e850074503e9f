"""What an OpenMMLab file says of itself is read as text, and carried over or refused by name."""

import pytest
import torch

from d2kd.conversion import Anchors, ConversionError, Stated, convert, read_checkpoint, read_stated
from d2kd.conversion.config_text import read_config_text
from tests.conversion.openmmlab import Spec, config, random_state

PUBLISHED = {family: Spec(family, style="caffe" if family == "fcos" else "pytorch") for family in ("gfl", "atss")}
PUBLISHED |= {"fcos": Spec("fcos", style="caffe"), "retinanet": Spec("retinanet", p6_from="c5")}


def meta(text, version="2.25.0"):
    return {"mmdet_version": version, "config": text}


def refusal(text, detector, version="2.25.0"):
    with pytest.raises(ConversionError) as error:
        read_stated(meta(text, version), detector)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("family", PUBLISHED)
def test_published_configs_say_what_is_assumed_without_them(family, version):
    spec = PUBLISHED[family]
    stated = read_stated(meta(config(spec, version)), family)
    assert None not in (stated.style, stated.pixels, stated.p6_from, stated.relu_before_p7)
    state = random_state(spec)
    one, other = convert(state, family, depth=18, stated=stated), convert(state, family, depth=18)
    assert one.target.model == other.target.model and one.target.changes == other.target.changes


def test_a_file_that_says_nothing():
    assert not any(vars(read_stated({}, "gfl")).values())
    stated = read_stated({"mmdet_version": "2.3.0+8a88a3b", "CLASSES": ("a",)}, "atss")
    assert stated.version == "2.3.0+8a88a3b" and stated.anchors is None
    assert read_stated(meta("optimizer = dict(type='SGD')"), "gfl") == Stated(version="2.25.0")


# OpenMMLab's defaults, where a config leaves them out


def test_defaults_of_what_a_config_leaves_out():
    text = "model = dict(backbone=dict(type='ResNet'), neck=dict(type='FPN', add_extra_convs=True), bbox_head=dict())"
    stated = read_stated(meta(text), "retinanet")
    assert stated.anchors == Anchors((4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), (0.5, 1.0, 2.0), 0.0)
    assert stated.stds == (1.0, 1.0, 1.0, 1.0) == read_stated(meta(text), "atss").stds
    assert (stated.style, stated.p6_from, stated.relu_before_p7) == ("pytorch", "c5", False)
    stated = read_stated(meta(text), "fcos")
    assert stated.norm_on_bbox is False and stated.centerness_on_reg is False and stated.anchors is None


@pytest.mark.parametrize(
    "neck, expected",
    [
        ("add_extra_convs=True", "c5"),
        ("add_extra_convs=True, extra_convs_on_inputs=False", "p5"),
        ("add_extra_convs='on_input'", "c5"),
        ("add_extra_convs='on_output'", "p5"),
        ("out_channels=256", None),
    ],
)
def test_what_p6_reads(neck, expected):
    assert read_stated(meta(f"model = dict(neck=dict(type='FPN', {neck}))"), "gfl").p6_from == expected


@pytest.mark.parametrize(
    "text, order",
    [
        ("model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True))", "RGB"),
        ("model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6]))", "BGR"),
        ("img_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)", "BGR"),
        ("img_norm_cfg = dict(mean=[1, 2, 3], std=[4, 5, 6])", "RGB"),
        (
            "data = dict(test=dict(pipeline=[dict(type='Normalize', mean=[1, 2, 3], std=(4, 5, 6), to_rgb=False)]))",
            "BGR",
        ),
        ("x = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True)\np = [dict(type='Normalize', **x)]", "RGB"),
    ],
)
def test_where_pixel_statistics_stand(text, order):
    pixels = read_stated(meta(text), "gfl").pixels
    assert (pixels.input_format, pixels.mean, pixels.std) == (order, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


# What is refused


@pytest.mark.parametrize(
    "part, named",
    [
        ("backbone=dict(type='ResNeXt')", "model.backbone.type='ResNeXt', expected 'ResNet'"),
        ("backbone=dict(type='ResNet', style='tensorflow')", "model.backbone.style='tensorflow', expected 'pytorch'"),
        ("backbone=dict(type='ResNet', dilations=(1, 1, 1, 2))", "model.backbone.dilations=[1, 1, 1, 2], expected [1"),
        ("backbone=dict(conv_cfg=dict(type='ConvWS'))", "model.backbone.conv_cfg={'type': 'ConvWS'}, expected None"),
        ("backbone=dict(avg_down=True)", "model.backbone.avg_down=True, expected False"),
        ("neck=[dict(type='FPN'), dict(type='DyHead')]", "expected one dict of literal values"),
        ("neck=dict(type='PAFPN')", "model.neck.type='PAFPN', expected 'FPN'"),
        ("neck=dict(add_extra_convs='on_lateral')", "model.neck.add_extra_convs='on_lateral', expected 'on_input'"),
        ("neck=dict(start_level=0)", "model.neck.start_level=0, expected 1"),
        ("neck=dict(upsample_cfg=dict(mode='bilinear'))", "model.neck.upsample_cfg.mode='bilinear', expected 'near"),
        ("neck=dict(relu_before_extra_convs=1)", "model.neck.relu_before_extra_convs=1, expected a bool"),
        ("bbox_head=dict(type='PAAHead')", "model.bbox_head.type='PAAHead', expected 'ATSSHead'"),
        ("bbox_head=dict(norm_cfg=dict(type='GN', num_groups=16))", "num_groups=16, expected 32"),
        ("bbox_head=dict(loss_cls=dict(use_sigmoid=False))", "bbox_head.loss_cls.use_sigmoid=False, expected True"),
        ("bbox_head=dict(anchor_generator=dict(ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[4, 8, "
         "16, 32, 64]))", "anchor_generator.strides=[4, 8, 16, 32, 64], expected [8, 16, 32, 64, 128]"),
        ("bbox_head=dict(anchor_generator=dict(type='LegacyAnchorGenerator'))", "'LegacyAnchorGenerator', expected '"),
        ("bbox_head=dict(anchor_generator=dict(ratios=[1.0], scales=[8], scale_major=False))", "scale_major=False, ex"),
        ("bbox_head=dict(anchor_generator=dict(ratios=[1.0], scales=[8], center_offset=-0.5))", "center_offset=-0.5"),
        ("bbox_head=dict(anchor_generator=dict(ratios=[1.0, 2.0], scales=[8]))", "'1 scales and 2 ratios', expected"),
        ("bbox_head=dict(anchor_generator=dict(ratios=[1.0]))", "octave_base_scale=None, expected a number"),
        ("bbox_head=dict(bbox_coder=dict(type='TBLRBBoxCoder'))", "coder.type='TBLRBBoxCoder', expected 'DeltaXYWHB"),
        ("bbox_head=dict(bbox_coder=dict(target_means=[0.1, 0, 0, 0]))", "target_means=[0.1, 0, 0, 0], expected [0, 0"),
        ("bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1]))", "target_stds=[0.1, 0.1], expected 4 numbers"),
        ("bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0, 1]))", "target_stds=[0.1, 0.1, 0, 1], expected"),
        ("data_preprocessor=dict(mean=[1, 2], std=[1, 1, 1])", "data_preprocessor.mean=[1, 2], expected 3 numbers"),
        ("bbox_head=make_head()", "model.bbox_head=make_head(), expected one dict"),
    ],
)  # fmt: skip
def test_what_is_not_converted_is_named(part, named):
    assert named in refusal(f"model = dict(type='ATSS', {part})", "atss")


def test_newer_configs_name_packages():
    text = "model = dict(backbone=dict(type='mmdet.models.backbones.resnet.ResNet'))"
    assert read_stated(meta(text), "gfl").style == "pytorch"
    assert "type='PAFPN'" in refusal("model = dict(neck=dict(type='mmdet.models.necks.pafpn.PAFPN'))", "gfl")


@pytest.mark.parametrize("version", ["1.0rc1+abc", "0.6.0", "1.2.0"])
def test_version_1(version):
    message = refusal("", "retinanet", version)
    assert (
        f"version 1 of MMDetection (meta.mmdet_version='{version}')" in message and "expected version 2 or 3" in message
    )
    assert read_stated(meta("", version), "fcos").version == version


def test_a_config_of_version_1_without_the_version():
    text = "model = dict(bbox_head=dict(type='RetinaHead', octave_base_scale=4, target_stds=[1.0, 1.0, 1.0, 1.0]))"
    with pytest.raises(ConversionError, match=r"version 1 of MMDetection \(model.bbox_head.octave_base_scale=4\)"):
        read_stated({"config": text}, "retinanet")


def test_fcos_of_version_1():
    """Its predictors had other names; nothing else differs."""
    state = random_state(PUBLISHED["fcos"])
    old = {key.replace("bbox_head.conv_", "bbox_head.fcos_"): value for key, value in state.items()}
    one, other = convert(state, "fcos", depth=18), convert(old, "fcos", depth=18)
    assert all(torch.equal(value, other.model[key]) for key, value in one.model.items())
    assert other.placed["head.cls_score.weight"] == "bbox_head.fcos_cls.weight"


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(style="caffe"), "--style is 'caffe', but the file's config says 'pytorch': remove --style"),
        (dict(p6_from="c5"), "--p6-from is 'c5', but the file's config says 'p5'"),
        (dict(norm_on_bbox=True), "--norm-on-bbox is True, but the file's config says False"),
        (dict(centerness_on_reg=True), "--centerness-on-reg is True, but the file's config says False"),
    ],
)
def test_options_that_contradict_the_file(options, named):
    spec = Spec("fcos")
    with pytest.raises(ConversionError) as error:
        convert(random_state(spec), "fcos", depth=18, stated=read_stated(meta(config(spec)), "fcos"), **options)
    assert named in str(error.value)


def test_a_config_that_contradicts_the_weights():
    stated = read_stated(meta(config(Spec("gfl", p6_from="c5"))), "gfl")
    with pytest.raises(ConversionError, match=r"P6 is read from C5 \(--p6-from, or the file's config\), but neck"):
        convert(random_state(Spec("gfl")), "gfl", depth=18, stated=stated)
    stated = read_stated(meta(config(Spec("retinanet", ratios=(1.0,)))), "retinanet")
    with pytest.raises(ConversionError, match="27 and 36 channels, expected classes and 4 for each of 3 anchors"):
        convert(random_state(PUBLISHED["retinanet"]), "retinanet", depth=18, stated=stated)


def test_a_config_that_is_no_text():
    with pytest.raises(ConversionError, match="config is a int, expected text: .* save the file's 'state_dict' alone"):
        read_stated({"config": 3}, "gfl")
    assert "config that the file carries cannot be read (" in refusal("model = dict(", "gfl")


# The text


def test_it_is_read_and_not_run(tmp_path):
    text = f"""/home/me/configs/atss.py
import os
made = os.mkdir({str(tmp_path / "made")!r})
root = 'data/'
model = dict(a=-1, b=(1, [2.5]), c={{'x': None}}, d=root, e=root + 'x', **dict(f=True))
"""
    found = read_config_text(text)
    assert {key: value for key, value in found["model"].items() if key != "e"} == {
        **dict(a=-1, b=[1, [2.5]], c={"x": None}, d="data/", f=True)
    }
    assert repr(found["model"]["e"]) == "root + 'x'" and "os.mkdir" in repr(found["made"])
    assert not (tmp_path / "made").exists()


def test_what_changes_a_value_later_is_not_overlooked():
    assert "expected" in refusal("model = dict(neck=dict(type='FPN'))\nmodel['neck'].update(type='PAFPN')", "gfl")
    assert "expected" in refusal("model = dict(neck=dict(type='FPN'))\nmodel['neck']['type'] = 'PAFPN'", "gfl")


def test_a_config_after_those_that_it_is_based_on():
    """Early files of version 2 have one text after another."""
    text = """/x/_base_/models/retinanet.py
model = dict(backbone=dict(type='ResNet', depth=50, style='pytorch'), neck=dict(type='FPN', add_extra_convs='on_input'))
img_norm_cfg = dict(mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True)

/x/retinanet_r101_caffe.py
_base_ = './retinanet.py'
model = dict(backbone=dict(depth=101, style='caffe'), neck=dict(_delete_=True, type='FPN'))
img_norm_cfg = dict(mean=[103.5, 116.2, 123.6], std=[1.0, 1.0, 1.0], to_rgb=False)
"""
    stated = read_stated(meta(text), "retinanet")
    assert (stated.style, stated.p6_from, stated.pixels.input_format) == ("caffe", None, "BGR")
    assert read_config_text(text)["model"] == {
        "backbone": {"type": "ResNet", "depth": 101, "style": "caffe"},
        "neck": {"type": "FPN"},
    }


def test_a_file_is_read_with_what_it_says(tmp_path):
    state = random_state(Spec("gfl", width=32))
    torch.save({"state_dict": state, "meta": meta("a = 1")}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")[1] == meta("a = 1")
    torch.save(state, tmp_path / "bare.pth")
    assert read_checkpoint(tmp_path / "bare.pth")[1] == {}
