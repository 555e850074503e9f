"""
The papers' detectors as OpenMMLab lays them out, with torch.nn.functional alone: random checkpoints, and what a network
with those weights answers. It reads their own keys and knows nothing of d2kd or Detectron2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PREDICTORS = {  # classes, boxes, centerness
    "gfl": ("gfl_cls", "gfl_reg", None),
    "atss": ("atss_cls", "atss_reg", "atss_centerness"),
    "retinanet": ("retina_cls", "retina_reg", None),
    "fcos": ("conv_cls", "conv_reg", "conv_centerness"),
}
# Images are RGB: (flip the channels, mean, std).
STYLES = {
    "pytorch": (False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": (True, (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
}

State = dict[str, Tensor]


@dataclass(frozen=True)
class Spec:
    """A detector and the facts about it that its file does not tell."""

    family: str
    depth: int = 18
    num_classes: int = 3
    width: int = 64
    reg_max: int = 16
    p6_from: str = "p5"
    style: str = "pytorch"
    centerness_on_reg: bool = False
    norm_on_bbox: bool = False
    scales: tuple[float, int] | None = None  # octave_base_scale, scales_per_octave; None: the published ones
    ratios: tuple[float, ...] | None = None
    offset: float = 0.0
    stds: tuple[float, ...] | None = None
    pixels: tuple[bool, tuple[float, ...], tuple[float, ...]] | None = None  # None: those of the style
    relu_before_p7: bool | None = None

    @property
    def anchors(self) -> tuple[list[float], tuple[float, ...]]:
        """Sides in strides, and ratios of height to width."""
        several = self.family == "retinanet"
        base, count = self.scales or ((4, 3) if several else (8, 1))
        return [base * 2 ** (i / count) for i in range(count)], self.ratios or ((0.5, 1.0, 2.0) if several else (1.0,))

    @property
    def box_stds(self) -> tuple[float, ...]:
        return self.stds or ((0.1, 0.1, 0.2, 0.2) if self.family == "atss" else (1.0, 1.0, 1.0, 1.0))

    @property
    def has_relu_before_p7(self) -> bool:
        return self.family == "fcos" if self.relu_before_p7 is None else self.relu_before_p7

    @property
    def image(self) -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
        """Whether RGB images are flipped, mean, std."""
        return self.pixels or STYLES[self.style]

    @property
    def bottleneck(self) -> bool:
        return self.depth >= 50


class Network(NamedTuple):
    """What it answers, per level; anchors and channels in OpenMMLab's order."""

    features: list[Tensor]  # (N, C, H, W)
    logits: list[Tensor]  # (N, A, K, H, W)
    boxes: list[Tensor]  # (N, A, 4, H, W), or (N, A, 4, bins, H, W) logits
    centerness: list[Tensor] | None  # (N, 1, H, W)
    anchors: list[Tensor]  # (A, H, W, 4) xyxy; points are boxes of a stride's side
    decoded: list[Tensor]  # (N, A, H, W, 4) xyxy pixels


# Random checkpoints


def random_state(spec: Spec, seed: int = 0) -> State:
    """Every tensor that such a file has, no two alike; activations stay moderate. Not to be changed in place."""
    return dict(_random_state(spec, seed))


@lru_cache(maxsize=2)
def _random_state(spec: Spec, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def conv(key: str, out: int, inputs: int, kernel: int, *, bias: bool = True, gain: float = 2.0) -> None:
        std = math.sqrt(gain / (inputs * kernel * kernel))
        state[f"{key}.weight"] = torch.randn(out, inputs, kernel, kernel, generator=generator) * std
        if bias:
            state[f"{key}.bias"] = torch.randn(out, generator=generator) * 0.1

    def affine(key: str, channels: int, low: float, high: float) -> None:
        state[f"{key}.weight"] = low + (high - low) * torch.rand(channels, generator=generator)
        state[f"{key}.bias"] = torch.randn(channels, generator=generator) * 0.1

    def batch_norm(key: str, channels: int, low: float = 0.8, high: float = 1.2) -> None:
        affine(key, channels, low, high)
        state[f"{key}.running_mean"] = torch.randn(channels, generator=generator) * 0.1
        state[f"{key}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        state[f"{key}.num_batches_tracked"] = torch.tensor(1000)

    conv("backbone.conv1", 64, 3, 7, bias=False)
    if spec.style == "caffe":  # its images are not divided by their deviation
        state["backbone.conv1.weight"] /= 58.0
    batch_norm("backbone.bn1", 64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[spec.depth], start=1):
        inner = 32 * 2**stage
        out = inner * (4 if spec.bottleneck else 1)
        convs = ((inner, 1), (inner, 3), (out, 1)) if spec.bottleneck else ((inner, 3), (out, 3))
        for block in range(blocks):
            prefix, inputs = f"backbone.layer{stage}.{block}", channels
            for number, (outputs, kernel) in enumerate(convs, start=1):
                conv(f"{prefix}.conv{number}", outputs, inputs, kernel, bias=False)
                last = number == len(convs)
                batch_norm(f"{prefix}.bn{number}", outputs, *((0.2, 0.4) if last else (0.8, 1.2)))
                inputs = outputs
            if channels != out:  # also where the stride alone changes: then the channels change too
                conv(f"{prefix}.downsample.0", out, channels, 1, bias=False)
                batch_norm(f"{prefix}.downsample.1", out)
            channels = out

    for level, inputs in enumerate((channels // 4, channels // 2, channels)):
        conv(f"neck.lateral_convs.{level}.conv", spec.width, inputs, 1, gain=1.0)
        conv(f"neck.fpn_convs.{level}.conv", spec.width, spec.width, 3, gain=1.0)
    conv("neck.fpn_convs.3.conv", spec.width, channels if spec.p6_from == "c5" else spec.width, 3, gain=1.0)
    conv("neck.fpn_convs.4.conv", spec.width, spec.width, 3, gain=1.0)

    norm = spec.family != "retinanet"
    for tower in ("cls_convs", "reg_convs"):
        for block in range(4):
            conv(f"bbox_head.{tower}.{block}.conv", spec.width, spec.width, 3, bias=not norm)
            if norm:
                affine(f"bbox_head.{tower}.{block}.gn", spec.width, 0.8, 1.2)
    anchors = len(spec.anchors[0]) * len(spec.anchors[1])
    boxes = 4 * (spec.reg_max + 1 if spec.family == "gfl" else 1)
    for name, outputs in zip(PREDICTORS[spec.family], (spec.num_classes, boxes, 1)):
        if name:
            # Without norms RetinaNet's towers leave larger activations, and its deltas are exponents.
            conv(f"bbox_head.{name}", anchors * outputs, spec.width, 3, gain=0.5 if norm else 0.005)
    if spec.family == "fcos":
        state["bbox_head.conv_reg.bias"] += 0.5 if spec.norm_on_bbox else 3.0
    if spec.family != "retinanet":
        for level in range(5):
            state[f"bbox_head.scales.{level}.scale"] = 0.7 + 0.6 * torch.rand((), generator=generator)
    if spec.family == "gfl":
        state["bbox_head.integral.project"] = torch.linspace(0, spec.reg_max, spec.reg_max + 1)
    return state


# The network


def _conv(state: State, key: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, state.get(f"{key}.bias"), stride=stride, padding=weight.shape[-1] // 2)


def _batch_norm(state: State, key: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


def _residual_block(state: State, prefix: str, x: Tensor, stride: int, style: str) -> Tensor:
    bottleneck = f"{prefix}.conv3.weight" in state
    strided = 2 if bottleneck and style == "pytorch" else 1  # the conv that halves the map
    out = x
    for number in (1, 2, 3) if bottleneck else (1, 2):
        if number > 1:
            out = F.relu(out)
        out = _conv(state, f"{prefix}.conv{number}", out, stride if number == strided else 1)
        out = _batch_norm(state, f"{prefix}.bn{number}", out)
    if f"{prefix}.downsample.0.weight" in state:
        x = _batch_norm(state, f"{prefix}.downsample.1", _conv(state, f"{prefix}.downsample.0", x, stride))
    return F.relu(out + x)


def pyramid(state: State, spec: Spec, images: Tensor) -> list[Tensor]:
    """P3 to P7 of RGB images (N, 3, H, W) in 0..255, sides multiples of 32."""
    flip, mean, std = spec.image
    x = images.flip(1) if flip else images
    x = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    x = F.relu(_batch_norm(state, "backbone.bn1", _conv(state, "backbone.conv1", x, 2)))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    stages = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"backbone.layer{stage}.{block}.conv1.weight" in state:
            stride = 2 if stage > 1 and block == 0 else 1
            x = _residual_block(state, f"backbone.layer{stage}.{block}", x, stride, spec.style)
            block += 1
        stages.append(x)
    laterals = [_conv(state, f"neck.lateral_convs.{i}.conv", c) for i, c in enumerate(stages[1:])]
    for i in (1, 0):
        laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=laterals[i].shape[-2:], mode="nearest")
    levels = [_conv(state, f"neck.fpn_convs.{i}.conv", x) for i, x in enumerate(laterals)]
    levels.append(_conv(state, "neck.fpn_convs.3.conv", stages[-1] if spec.p6_from == "c5" else levels[-1], 2))
    before_p7 = F.relu(levels[-1]) if spec.has_relu_before_p7 else levels[-1]
    return [*levels, _conv(state, "neck.fpn_convs.4.conv", before_p7, 2)]


def _tower(state: State, name: str, x: Tensor) -> Tensor:
    for block in range(4):
        x = _conv(state, f"bbox_head.{name}.{block}.conv", x)
        gn = f"bbox_head.{name}.{block}.gn"
        if f"{gn}.weight" in state:
            x = F.group_norm(x, 32, state[f"{gn}.weight"], state[f"{gn}.bias"], eps=1e-5)
        x = F.relu(x)
    return x


def _anchors(spec: Spec, stride: int, height: int, width: int) -> Tensor:
    """(A, H, W, 4); in the order ratio * scales + scale."""
    if spec.family == "fcos":
        offset, shapes = 0.5, [(stride, stride)]
    else:
        (scales, ratios), offset = spec.anchors, spec.offset
        shapes = [(x * stride / math.sqrt(ratio), x * stride * math.sqrt(ratio)) for ratio in ratios for x in scales]
    y = ((torch.arange(height) + offset) * stride)[:, None].expand(height, width)
    x = ((torch.arange(width) + offset) * stride)[None, :].expand(height, width)
    return torch.stack([torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1) for w, h in shapes])


def _decode(spec: Spec, raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
    """Boxes (N, A, H, W, 4) of raw predictions (N, A, 4, [bins,] H, W)."""
    center = (anchors[..., :2] + anchors[..., 2:]) / 2  # (A, H, W, 2)
    if spec.family in ("gfl", "fcos"):
        if spec.family == "gfl":
            bins = torch.arange(raw.shape[3], dtype=raw.dtype).view(-1, 1, 1)
            distances = (raw.softmax(dim=3) * bins).sum(dim=3) * stride
        else:
            distances = F.relu(raw) * stride if spec.norm_on_bbox else raw
        left, top, right, bottom = distances.unbind(2)
        x, y = center.unbind(-1)
        return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)
    raw = raw * torch.tensor(spec.box_stds).view(4, 1, 1)
    size = anchors[..., 2:] - anchors[..., :2]
    dx, dy, dw, dh = raw.unbind(2)
    limit = math.log(1000 / 16)
    x, y = center[..., 0] + dx * size[..., 0], center[..., 1] + dy * size[..., 1]
    w, h = size[..., 0] * dw.clamp(-limit, limit).exp(), size[..., 1] * dh.clamp(-limit, limit).exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)


def run(state: State, spec: Spec, images: Tensor) -> Network:
    """
    Args:
        state: the file's weights.
        spec: what they are.
        images: (N, 3, H, W) RGB in 0..255, sides multiples of 32.
    """
    features = pyramid(state, spec, images)
    cls_name, reg_name, centerness_name = PREDICTORS[spec.family]
    logits, boxes, centerness, anchors, decoded = [], [], [], [], []
    for level, (feature, stride) in enumerate(zip(features, STRIDES)):
        height, width = feature.shape[-2:]
        cls, reg = _tower(state, "cls_convs", feature), _tower(state, "reg_convs", feature)
        anchors.append(_anchors(spec, stride, height, width))
        count = len(anchors[-1])
        logits.append(_conv(state, f"bbox_head.{cls_name}", cls).reshape(len(feature), count, -1, height, width))
        raw = _conv(state, f"bbox_head.{reg_name}", reg)
        if f"bbox_head.scales.{level}.scale" in state:
            raw = raw * state[f"bbox_head.scales.{level}.scale"]
        if spec.family == "fcos" and not spec.norm_on_bbox:
            raw = raw.exp()
        bins = (spec.reg_max + 1,) if spec.family == "gfl" else ()
        boxes.append(raw.reshape(len(feature), count, 4, *bins, height, width))
        if centerness_name:
            on_reg = spec.family == "atss" or spec.centerness_on_reg
            centerness.append(_conv(state, f"bbox_head.{centerness_name}", reg if on_reg else cls))
        decoded.append(_decode(spec, boxes[-1], anchors[-1], stride))
    return Network(features, logits, boxes, centerness or None, anchors, decoded)


# What a file says of itself


def config(spec: Spec, version: int = 2) -> str:
    """The text that a checkpoint of version 2 or 3 has in its meta, as a config is printed there."""
    flip, mean, std = spec.image
    head = {
        "gfl": "GFLHead",
        "atss": "ATSSHead",
        "retinanet": "RetinaHead",
        "fcos": "FCOSHead",
    }[spec.family]
    base, count = spec.scales or ((4, 3) if spec.family == "retinanet" else (8, 1))
    anchors = (
        f"anchor_generator=dict(type='AnchorGenerator', ratios={list(spec.anchors[1])}, octave_base_scale={base}, "
        f"scales_per_octave={count}, center_offset={spec.offset}, strides={list(STRIDES)}),"
    )
    coder = (
        "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], "
        f"target_stds={list(spec.box_stds)}),"
    )
    fcos = f"strides={list(STRIDES)}, centerness_on_reg={spec.centerness_on_reg}, norm_on_bbox={spec.norm_on_bbox},"
    own = {"gfl": anchors, "fcos": fcos}.get(spec.family, anchors + coder)
    pixels = (
        f"data_preprocessor=dict(type='DetDataPreprocessor', mean={list(mean)}, std={list(std)}, "
        f"bgr_to_rgb={not flip}, pad_size_divisor=32),"
    )
    model = f"""model = dict(
    type='{spec.family.upper()}',
    {pixels if version == 3 else "pretrained='torchvision://resnet',"}
    backbone=dict(type='ResNet', depth={spec.depth}, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), style='{spec.style}'),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels={spec.width}, start_level=1,
        add_extra_convs='{"on_input" if spec.p6_from == "c5" else "on_output"}', num_outs=5,
        relu_before_extra_convs={spec.has_relu_before_p7}),
    bbox_head=dict(type='{head}', num_classes={spec.num_classes}, in_channels={spec.width}, stacked_convs=4,
        {own}
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)))
"""
    norm = f"mean={list(mean)}, std={list(std)}, to_rgb={not flip}"
    pipeline = f"""img_norm_cfg = dict({norm})
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False,
        transforms=[dict(type='Resize', keep_ratio=True), dict(type='Normalize', {norm})])
]
"""
    return model + ("" if version == 3 else pipeline) + "optimizer = dict(type='SGD', lr=0.01, momentum=0.9)\n"
