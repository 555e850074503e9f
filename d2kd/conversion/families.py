"""The four detectors and the two kinds of ImageNet weights, as far as a checkpoint does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FAMILIES", "STYLES", "Family", "Style"]


@dataclass(frozen=True)
class Style:
    """
    Which ImageNet weights a backbone began with: what it expects of images, and where its bottlenecks stride.

    Attributes:
        stride_in_1x1: a bottleneck's first 1x1 convolution has the stride, not its 3x3.
        input_format: channel order.
        pixel_mean: in that order, of values 0..255.
        pixel_std: likewise.
    """

    stride_in_1x1: bool
    input_format: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


STYLES: Mapping[str, Style] = {
    "pytorch": Style(False, "RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": Style(True, "BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Family:
    """
    A detector family.

    Attributes:
        title: as people write it.
        config: the model's file below d2kd's configs.
        predictors: predictor of Detectron2's head -> its name in OpenMMLab's.
        style: a key of :data:`STYLES`, that of the published files.
        num_anchors: anchors of a cell.
    """

    title: str
    config: str
    predictors: Mapping[str, str]
    style: str = "pytorch"
    num_anchors: int = 1


#: The tool's ``--detector``.
FAMILIES: Mapping[str, Family] = {
    "gfl": Family(
        title="GFL",
        config="common/models/gfl.py",
        predictors={"cls_score": "gfl_cls", "bbox_pred": "gfl_reg"},
    ),
    "atss": Family(
        title="ATSS",
        config="common/models/atss.py",
        predictors={"cls_score": "atss_cls", "bbox_pred": "atss_reg", "ctrness": "atss_centerness"},
    ),
    "retinanet": Family(
        title="RetinaNet",
        config="common/models/retinanet_openmmlab.py",
        predictors={"cls_score": "retina_cls", "bbox_pred": "retina_reg"},
        num_anchors=9,
    ),
    "fcos": Family(
        title="FCOS",
        config="common/models/fcos_openmmlab.py",
        predictors={"cls_score": "conv_cls", "bbox_pred": "conv_reg", "ctrness": "conv_centerness"},
        style="caffe",
    ),
}
