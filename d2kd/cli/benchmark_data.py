"""What d2kd benchmark measures: detectors and images of a few sizes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig

import d2kd
from d2kd.methods import METHODS, get_losses
from d2kd.modeling.adapters import get_adapter, preset_families

__all__ = ["FAMILIES", "SIZES", "Batch", "Size", "build_pair", "detectors_of", "make_batch", "methods_of", "title_of"]

FAMILIES = {"retinanet": "RetinaNet", "fcos": "FCOS", "gfl": "GFL", "atss": "ATSS"}

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """
    What is measured under one name: images and detectors of a size.

    Attributes:
        images: in a batch.
        canvas: (H, W) of each in pixels.
        objects: in each image.
        classes: of both detectors.
        depths: of the ResNets of student and teacher; None: the detectors of the digits, as their configs have them.
        channels: of FPN and head, with ``depths``.
        repeats: how many rounds there are for one of the slowest size.
    """

    images: int
    canvas: tuple[int, int]
    objects: int
    classes: int = 80
    depths: tuple[int, int] | None = None
    channels: int = 256
    repeats: int = 1

    @property
    def detectors(self) -> str:
        return "the digits' own" if self.depths is None else "R{} <- R{}".format(*self.depths)

    def __str__(self) -> str:
        height, width = self.canvas
        return f"{self.images} x {height}x{width} pixels, {self.classes} classes, {self.objects} objects an image"


SIZES = {
    "digits": Size(images=8, canvas=(96, 96), objects=2, classes=5, repeats=5),
    "small": Size(images=2, canvas=(320, 480), objects=8, depths=(18, 50)),
    "coco": Size(images=2, canvas=(800, 1333), objects=8, depths=(50, 101)),
}


def detectors_of(family: str, size: Size) -> list[str]:
    """The detectors that are measured of a family, by their names in configs/common/models."""
    if size.depths is not None:
        return [family]
    return [f"digits_{family}", *(["digits_fcos_small"] if family == "fcos" else [])]


def title_of(detector: str) -> str:
    family, _, variant = detector.removeprefix("digits_").partition("_")
    return "-".join(filter(None, [FAMILIES[family], variant]))


def methods_of(detector: str) -> list[str]:
    """The methods with a preset that fits two detectors of this name: LD, for instance, needs distributions."""
    with torch.device("meta"):  # nothing but its description is of interest
        built = instantiate(d2kd.get_config(f"common/models/{detector}.py").model)
    spec = get_adapter(built).describe(built)
    fitting = []
    for method in METHODS:
        try:
            for node in get_losses(method, *preset_families(type(built))).values():
                instantiate(node).check_pair(spec, spec)
        except ValueError:  # no preset, or one that does not fit
            continue
        fitting.append(method)
    return fitting


def build_pair(detector: str, size: Size, device: torch.device) -> tuple[DenseDetector, DenseDetector]:
    """Student and teacher, of random weights."""
    student = d2kd.get_config(f"common/models/{detector}.py").model
    if size.depths is None:
        teacher = d2kd.get_config(f"common/teachers/{detector.removesuffix('_small')}.py").model
    else:
        teacher = deepcopy(student)
        for node, depth in zip((student, teacher), size.depths):
            _resize(node, depth, size.channels)
    student.num_classes = teacher.num_classes = size.classes
    torch.manual_seed(0)
    built = [instantiate(node).to(device) for node in (student, teacher)]
    return built[0].train(), built[1].eval().requires_grad_(False)


def _resize(node: DictConfig, depth: int, channels: int) -> None:
    """Give a detector's node another depth of its ResNet, and another width of FPN and head."""
    node.backbone.out_channels = channels
    node.head.input_shape = [ShapeSpec(channels=channels)] * len(node.head_in_features)
    node.head.conv_dims = [channels] * len(node.head.conv_dims)
    stages = node.backbone.bottom_up.stages
    stages.depth = depth
    if depth < 50:
        stages.pop("stride_in_1x1", None)  # basic blocks have no 1x1 convolution to put the stride in
    if "in_feature" in node.backbone.top_block:  # FCOS makes p6 from p5, RetinaNet from res5
        node.backbone.top_block.in_channels = channels
    else:
        node.backbone.top_block.in_channels = 512 if depth < 50 else 2048


def make_batch(size: Size, device: torch.device) -> Batch:
    """Noise images on ``device``, with boxes an eighth to a half of the image's sides."""
    height, width = size.canvas
    scale = torch.tensor([width, height], dtype=torch.float32)
    batch = []
    for _ in range(size.images):
        sides = torch.empty(size.objects, 2).uniform_(1 / 8, 1 / 2) * scale
        corners = torch.rand(size.objects, 2) * (scale - sides)
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.cat([corners, corners + sides], dim=1)),
            gt_classes=torch.randint(size.classes, (size.objects,)),
        )
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        batch.append({"image": image.to(device), "instances": instances.to(device)})
    return batch
