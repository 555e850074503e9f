"""The four detectors and the two kinds of ImageNet weights, as far as a checkpoint does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FAMILIES", "STRIDES", "STYLES", "Family", "Pixels", "Style"]

#: Of the five levels of all four detectors.
STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Pixels:
    """
    Attributes:
        input_format: channel order.
        mean: in that order, of values 0..255.
        std: likewise.
    """

    input_format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Style:
    """
    Which ImageNet weights a backbone began with: what it expects of images, and where its bottlenecks stride.

    Attributes:
        stride_in_1x1: a bottleneck's first 1x1 convolution has the stride, not its 3x3.
        pixels: what these weights expect of images; a detector's config may say otherwise.
    """

    stride_in_1x1: bool
    pixels: Pixels


STYLES: Mapping[str, Style] = {
    "pytorch": Style(False, Pixels("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))),
    "caffe": Style(True, Pixels("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))),
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
        anchors: how many ratios and how many scales a cell's anchors have, unless the file's config says otherwise.
    """

    title: str
    config: str
    predictors: Mapping[str, str]
    style: str = "pytorch"
    anchors: tuple[int, int] = (1, 1)


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
        anchors=(3, 3),
    ),
    "fcos": Family(
        title="FCOS",
        config="common/models/fcos_openmmlab.py",
        predictors={"cls_score": "conv_cls", "bbox_pred": "conv_reg", "ctrness": "conv_centerness"},
        style="caffe",
    ),
}
