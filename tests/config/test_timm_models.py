"""The packaged detectors for devices."""

import pytest
from detectron2.config import instantiate

import d2kd
from d2kd.modeling import DistilledDetector

BACKBONES = d2kd.get_config("common/models/timm_backbones.py")


def without_weights(bottom_up):
    for key in ("pretrained", "weights"):
        bottom_up.pop(key, None)
    return bottom_up


@pytest.mark.parametrize("detector", ["gfl", "fcos", "retinanet", "atss"])
def test_a_detector_is_read_and_can_be_distilled(detector):
    node = d2kd.get_config(f"common/models/{detector}_timm.py").model
    without_weights(node.backbone.bottom_up)
    node.num_classes = 3
    student = instantiate(node)
    text = str(d2kd.check_adapter(student))
    assert "levels of strides 8, 16, 32" in text and "2 blocks, channels 96 > 96 > 96" in text
    assert sum(x.numel() for x in student.parameters()) < 1.7e6
    model = d2kd.distill(node, teacher=node, teacher_checkpoint="teacher.pth", method="crosskd")
    assert isinstance(instantiate(model), DistilledDetector)
    assert getattr(student, "input_format", "RGB") == "RGB"


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mobilenetv3_small", 0.9),
        ("mobilenetv3_large", 3.0),
        ("efficientnet_lite0", 3.0),
        ("regnety_400mf", 3.9),
        ("convnext_nano", 15.0),
    ],
)
def test_a_backbone(name, millions):
    """Its strides, and its size as docs/own_data.md has it."""
    node = BACKBONES[name]
    assert node.get("pretrained") or "weights" in node
    backbone = instantiate(without_weights(node))
    assert [shape.stride for shape in backbone.output_shape().values()] == [8, 16, 32]
    assert round(sum(x.numel() for x in backbone.parameters()) / 1e6, 1) == millions


def test_every_backbone_is_tested():
    assert len(BACKBONES) == 5
