"""Model nodes of tiny detectors, as LazyConfig files write them, and a built pair. Not a test."""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from omegaconf import OmegaConf

from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors import GFL, ATSSAssigner, GFLHead
from tests.helpers import LEVELS, PIXELS, build_backbone, build_detector, distilled, preset


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


def gfl(**changes):
    model = L(GFL)(
        backbone=L(build_backbone)(width=4),
        head=L(GFLHead)(
            input_shape=[ShapeSpec(channels=8)] * 3,
            num_classes="${..num_classes}",
            conv_dims=[8, 8],
            norm="",
            reg_max=4,
        ),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[16], [32], [64]], aspect_ratios=[1.0], strides=[8, 16, 32], offset=0.0
        ),
        assigner=L(ATSSAssigner)(topk=9),
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


def pair(family: str = "RetinaNet", method: str = "crosskd", seed: int = 0) -> DistilledDetector:
    """A student and a teacher of one family and other weights, with a method's preset for heads of two blocks."""
    return distilled(build_detector(family, seed=seed), build_detector(family, seed=1), preset(method, family, tail=1))
