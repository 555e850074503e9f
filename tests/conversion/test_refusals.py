"""What does not convert is refused, by name."""

import pytest
import torch

from d2kd.conversion import ConversionError, convert
from d2kd.conversion.names import reorder_anchors
from tests.conversion.openmmlab import PREDICTORS, Spec, random_state


@pytest.fixture
def state():
    return random_state(Spec("gfl", width=32))


def refusal(state, detector="gfl", depth=18, **kwargs):
    with pytest.raises(ConversionError) as error:
        convert(state, detector, depth=depth, **kwargs)
    return str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.conv1.weight",
        "backbone.bn1.running_var",
        "backbone.layer2.0.downsample.1.bias",
        "backbone.layer4.1.conv2.weight",
        "neck.lateral_convs.1.conv.bias",
        "neck.fpn_convs.4.conv.weight",
        "bbox_head.reg_convs.2.gn.weight",
        "bbox_head.gfl_reg.bias",
        "bbox_head.scales.4.scale",
    ],
)
def test_a_missing_key(state, key):
    del state[key]
    assert f"missing, 1: {key} (" in refusal(state)


@pytest.mark.parametrize("key", ["neck.fpn_convs.3.conv.weight", "bbox_head.gfl_reg.weight"])
def test_a_missing_key_that_tells_the_architecture(state, key):
    del state[key]
    assert f"lacks {key}" in refusal(state)


def test_all_missing_keys_are_listed_with_all_that_are_not_known(state):
    del state["neck.fpn_convs.0.conv.bias"], state["bbox_head.scales.0.scale"]
    state["neck.fpn_convs.5.conv.weight"] = state["bbox_head.other.weight"] = torch.zeros(1)
    message = refusal(state)
    assert "missing, 2: neck.fpn_convs.0.conv.bias ((32,)), bbox_head.scales.0.scale (())" in message
    assert "neither placed nor dropped, 2: neck.fpn_convs.5.conv.weight, bbox_head.other.weight" in message


def test_a_bias_beside_a_norm_is_not_lost(state):
    """Detectron2's head has none there: what it adds would change the group's statistics."""
    state["bbox_head.cls_convs.0.conv.bias"] = torch.zeros(32)
    assert "neither placed nor dropped, 1: bbox_head.cls_convs.0.conv.bias" in refusal(state)


def test_another_shape(state):
    state["backbone.layer3.1.conv2.weight"] = torch.zeros(256, 8, 3, 3)
    assert (
        "of another shape, 1: backbone.layer3.1.conv2.weight (file (256, 8, 3, 3), expected (256, 256, 3, 3))"
        in refusal(state)
    )


@pytest.mark.parametrize("depth", [34, 50, 101])
def test_another_depth(state, depth):
    message = refusal(state, depth=depth)
    assert f"--depth is {depth}" in message and "ResNet-18" in message


def test_depths_of_equal_block_counts_are_told_apart():
    """34 and 50 differ in the kind of block."""
    state = random_state(Spec("gfl", depth=34, width=32))
    assert "ResNet-34" in refusal(state, depth=50)


def test_no_resnet_of_those_depths(state):
    for key in [key for key in state if key.startswith("backbone.layer4.1.")]:
        del state[key]
    assert "[2, 2, 2, 1] basic blocks" in refusal(state)


@pytest.mark.parametrize("detector", PREDICTORS)
@pytest.mark.parametrize("family", PREDICTORS)
def test_another_family(family, detector):
    state = random_state(Spec(family, width=32))
    if family == detector:
        convert(state, detector, depth=18)
        return
    message = refusal(state, detector)
    assert f"--detector is {detector}" in message and f"predictors of --detector {family}" in message


def test_no_such_family(state):
    state = {key.replace("gfl", "vfnet"): value for key, value in state.items()}
    message = refusal(state)
    assert "no other family" in message and "bbox_head.vfnet_cls" in message
    assert "expected one of gfl, atss" in refusal(state, "yolo")


@pytest.mark.parametrize("conv", ["conv1.conv_offset.weight", "conv2.conv_offset.bias"])
def test_deformable_stages(state, conv):
    state[f"backbone.layer3.0.{conv}"] = torch.zeros(1)
    message = refusal(state)
    assert "Deformable" in message and f"backbone.layer3.0.{conv}" in message


def test_an_input_of_p6_that_contradicts_the_weights(state):
    message = refusal(state, p6_from="c5")
    assert "P6 is read from C5 (--p6-from, or the file's config), but neck.fpn_convs.3 reads 32 channels" in message
    assert convert(state, "gfl", depth=18, p6_from="p5").architecture.p6_from == "p5"
    state["neck.fpn_convs.3.conv.weight"] = torch.zeros(32, 100, 3, 3)
    assert "reads 100 channels" in refusal(state)


def test_an_input_of_p6_that_the_weights_do_not_tell():
    state = random_state(Spec("retinanet", width=512))
    assert "add --p6-from c5 or p5" in refusal(state, "retinanet")
    for p6_from, feature in (("c5", "res5"), ("p5", "p5")):
        node = convert(state, "retinanet", depth=18, p6_from=p6_from).target.model
        assert node.backbone.top_block.in_feature == feature


def test_an_integral_over_other_distances(state):
    state["bbox_head.integral.project"] = torch.linspace(-2, 2, 17)
    assert "expected the whole numbers from 0 to 16" in refusal(state)
    state["bbox_head.integral.project"] = torch.arange(9.0)
    assert "from 0 to 16" in refusal(state)


@pytest.mark.parametrize("name", ["centerness_on_reg", "norm_on_bbox"])
def test_options_of_fcos(state, name):
    assert f"--{name.replace('_', '-')} is an option of FCOS" in refusal(state, **{name: True})


def test_a_style_that_does_not_exist(state):
    assert "expected one of pytorch, caffe" in refusal(state, style="tensorflow")


def test_predictors_of_other_anchors():
    state = random_state(Spec("retinanet", width=32))
    for name, channels in (("retina_cls", 9), ("retina_reg", 12)):
        for part in ("weight", "bias"):
            state[f"bbox_head.{name}.{part}"] = state[f"bbox_head.{name}.{part}"][:channels]
    assert "9 and 12 channels, expected classes and 4 for each of 9 anchors" in refusal(state, "retinanet")
    state = random_state(Spec("gfl", width=32, reg_max=0))
    assert "3 and 4 channels, expected classes and 4 x (reg_max + 1)" in refusal(state)
    state = random_state(Spec("gfl", width=32))
    state = {key.replace("gfl_", "atss_"): value for key, value in state.items()}
    assert "of 1 anchor a cell" in refusal(state, "atss")


# Averaged weights


def averaged(state, spell):
    return {f"ema_{spell(key)}": value + 1 for key, value in state.items()}


SPELLINGS = pytest.mark.parametrize("spell", [lambda key: key.replace(".", "_"), str], ids=["buffer", "key"])


@SPELLINGS
def test_averaged_copies_are_dropped_with_a_reason(state, spell):
    copies = averaged(state, spell)
    plain = convert(state, "gfl", depth=18)
    conversion = convert(state | copies, "gfl", depth=18)
    assert all(torch.equal(value, plain.model[key]) for key, value in conversion.model.items())
    assert conversion.dropped.keys() == plain.dropped.keys() | copies.keys()
    assert "--ema" in conversion.dropped[f"ema_{spell('backbone.conv1.weight')}"]


@SPELLINGS
def test_averaged_copies_are_taken(state, spell):
    state.pop("bbox_head.integral.project")
    copies = averaged(state, spell)
    conversion = convert(state | copies, "gfl", depth=18, ema=True)
    for key, file_key in conversion.placed.items():
        assert file_key.startswith("ema_")
        assert torch.equal(conversion.model[key], copies[file_key])
    assert conversion.dropped.keys() == state.keys()


def test_averaged_copies_that_are_not_all_there(state):
    copies = averaged(state, str)
    assert "has none of" in refusal(state, ema=True)
    del copies["ema_neck.fpn_convs.0.conv.bias"]
    message = refusal(state | copies, ema=True)
    assert "has none of neck.fpn_convs.0.conv.bias: remove --ema" in message


def test_an_averaged_copy_of_nothing(state):
    state.pop("bbox_head.integral.project")
    copies = averaged(state, str) | {"ema_other": torch.zeros(1)}
    assert "neither placed nor dropped, 1: ema_other" in refusal(state | copies, ema=True)


def test_averages_do_not_hide_an_unknown_key(state):
    state.pop("bbox_head.integral.project")
    state["bbox_head.other"] = torch.zeros(1)
    message = refusal(state | averaged(state, str), ema=True)
    assert "neither placed nor dropped, 1: bbox_head.other" in message


# The nine anchors


def test_anchors_are_reordered_with_all_that_belongs_to_them():
    """Channel ratio * 3 + scale becomes scale * 3 + ratio; a box's four and a class's place stay."""
    channels = torch.arange(9 * 4)
    expected = [(ratio * 3 + scale) * 4 + c for scale in range(3) for ratio in range(3) for c in range(4)]
    assert reorder_anchors(channels, ratios=3, scales=3).tolist() == expected
    kernels = reorder_anchors(channels.view(-1, 1, 1, 1), ratios=3, scales=3)
    assert torch.equal(kernels.flatten(), torch.tensor(expected))
    assert reorder_anchors(torch.arange(6), ratios=2, scales=3).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_retinanet_with_norms_in_its_towers():
    state = random_state(Spec("retinanet", width=32))
    state["bbox_head.cls_convs.0.gn.weight"] = torch.ones(32)
    assert "RetinaNet have group norms" in refusal(state, "retinanet")
