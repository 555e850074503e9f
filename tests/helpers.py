"""Tiny detectors and batches: a training step takes about ten milliseconds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from unittest import mock

import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2kd.losses import (
    BinaryClassificationKD,
    DistillationLoss,
    FeatureImitation,
    IoULocalizationKD,
    LocalizationDistillation,
    SoftmaxClassificationKD,
)
from d2kd.methods import get_losses
from d2kd.modeling import DistilledDetector
from d2kd.modeling.detectors import ATSS, GFL, ATSSAssigner, ATSSHead, GFLHead
from d2kd.modeling.distillation import distilled_detector
from d2kd.structures import Assignment

FAMILIES = ("RetinaNet", "FCOS", "GFL", "ATSS")
REG_MAX = 4
NUM_CLASSES = 3
LEVELS, STRIDES = ["p3", "p4", "p5"], [8, 16, 32]
PIXELS = dict(pixel_mean=[103.53, 116.28, 123.675], pixel_std=[57.375, 57.12, 58.395])


class LastLevel(nn.Module):
    """One more FPN level, so that a 32-pixel image has a 1x1 map."""

    num_levels = 1
    in_feature = "res4"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


def build_backbone(width: int = 4, fpn: int = 8, norm: str = "BN", square_pad: int = 0) -> FPN:
    """Strides 8, 16 and 32; pads to multiples of 16."""
    stages = [
        ResNet.make_stage(BasicBlock, 1, in_channels=width * i, out_channels=width * o, stride_per_block=[s], norm=norm)
        for i, o, s in ((1, 1, 1), (1, 2, 2), (2, 4, 2))
    ]
    bottom_up = ResNet(BasicStem(3, width, norm=norm), stages, out_features=["res3", "res4"], freeze_at=0)
    return FPN(
        bottom_up,
        ["res3", "res4"],
        fpn,
        norm=norm,
        top_block=LastLevel(4 * width, fpn),
        square_pad=square_pad,
    )


def build_head(
    family: str,
    norm="",
    conv_dims: Sequence[int] = (8, 8),
    fpn: int = 8,
    num_classes=NUM_CLASSES,
    num_levels=3,
):
    """A head whose predictions differ from place to place (Detectron2's initial ones hardly do)."""
    kwargs = dict(
        input_shape=[ShapeSpec(channels=fpn)] * num_levels,
        num_classes=num_classes,
        conv_dims=list(conv_dims),
        norm=norm,
        prior_prob=0.1,
    )
    heads = dict(
        RetinaNet=partial(RetinaNetHead, num_anchors=2),
        FCOS=FCOSHead,
        GFL=partial(GFLHead, reg_max=REG_MAX),
        ATSS=ATSSHead,
    )
    head = heads[family](**kwargs)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(head.bbox_pred.weight, std=0.05)
    nn.init.constant_(head.bbox_pred.bias, 1.0 if family == "FCOS" else 0.0)  # FCOS decodes through a ReLU
    return head


def build_detector(
    family: str,
    *,
    seed: int = 0,
    width: int = 4,
    fpn: int = 8,
    conv_dims: Sequence[int] = (8, 8),
    norm="",
    num_classes: int = NUM_CLASSES,
    backbone_norm: str = "BN",
    square_pad: int = 0,
    sizes: Sequence[Sequence[int]] = ((8, 12), (16, 24), (32, 48)),
    levels: Sequence[str] = LEVELS,
    detector_class: type[DenseDetector] | None = None,
    **kwargs,
) -> DenseDetector:
    torch.manual_seed(seed)
    backbone = build_backbone(width, fpn, backbone_norm, square_pad)
    head = build_head(family, norm, conv_dims, fpn, num_classes, len(levels))
    common = dict(backbone=backbone, head=head, head_in_features=list(levels), num_classes=num_classes, **PIXELS)
    common.update(kwargs)
    strides = [STRIDES[LEVELS.index(level)] for level in levels]
    if family == "FCOS":
        return (detector_class or FCOS)(**common)
    if family in ("GFL", "ATSS"):
        generator = DefaultAnchorGenerator(
            sizes=[[2 * stride] for stride in strides], aspect_ratios=[1.0], strides=strides, offset=0.0
        )
        detector_class = detector_class or dict(GFL=GFL, ATSS=ATSS)[family]
        return detector_class(anchor_generator=generator, assigner=ATSSAssigner(topk=9), **common)
    return (detector_class or RetinaNet)(
        anchor_generator=DefaultAnchorGenerator(
            sizes=[list(sizes[LEVELS.index(x)]) for x in levels], aspect_ratios=[1.0], strides=strides, offset=0.5
        ),
        box2box_transform=Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        **common,
    )


def make_losses(method: str, **kwargs) -> dict:
    """The terms of a method with weights and options alike for all detectors ("ld": those with distributions)."""
    if method == "ld":
        vlr = {"name": "valuable_localization", "gamma": 0.25}
        return dict(
            ld_main=LocalizationDistillation(**{"region": "main", "normalizer": "images", **kwargs}),
            ld_vlr=LocalizationDistillation(**{"region": vlr, "normalizer": "images", **kwargs}),
            ld_main_kd=SoftmaxClassificationKD(**{"region": "positives", "normalizer": "level_locations", **kwargs}),
            ld_quality=LocalizationDistillation(**{"region": "teacher_quality", "normalizer": "locations", **kwargs}),
            imitation=FeatureImitation(**{"region": "inside_box", "normalizer": "level_locations", **kwargs}),
        )
    if method == "bckd":
        return dict(
            bckd_cls=BinaryClassificationKD(**kwargs),
            bckd_loc=IoULocalizationKD(**{"region": "gap", **kwargs}),
        )
    return dict(
        crosskd_cls=BinaryClassificationKD(source="crossed", **kwargs),
        crosskd_loc=IoULocalizationKD(source="crossed", **{"region": "teacher_quality", **kwargs}),
    )


def preset(method: str, family: str, **fields) -> dict[str, DistillationLoss]:
    """A method's own losses, at their full weight from the first step; ``fields`` are set where a loss has them."""
    nodes = get_losses(method, family)
    for node in nodes.values():
        node.pop("schedule", None)
        node.update({name: value for name, value in fields.items() if name in node})
    return {name: instantiate(node) for name, node in nodes.items()}


def distilled(
    student: DenseDetector, teacher: DenseDetector | None = None, losses: Mapping | str | None = None
) -> DistilledDetector:
    """A distilled detector whose teacher is a module that is already loaded, run as it is."""
    if isinstance(losses, str):
        losses = make_losses(losses)
    node = None if teacher is None else dict(model=teacher, engine="eager")
    return DistilledDetector(student=student, teacher=node, losses=losses)


def make_batch(
    sizes: Sequence[tuple[int, int]] = ((40, 48), (32, 60)), objects: Sequence[int] | int = 2, seed: int = 0
) -> list[dict]:
    """One image of random pixels for each (H, W), with ``objects`` boxes of 10 to 28 pixels in each."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(objects, int):
        objects = [objects] * len(sizes)
    batch = []
    for (h, w), count in zip(sizes, objects, strict=True):
        image = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
        box_sizes = 10 + 18 * torch.rand(count, 2, generator=generator)
        corners = torch.rand(count, 2, generator=generator) * (torch.tensor([w, h]) - box_sizes)
        instances = Instances((h, w))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + box_sizes], dim=1))
        instances.gt_classes = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        batch.append(dict(image=image, instances=instances, height=h, width=w))
    return batch


def flat_assignment(labels: Tensor, num_classes: int, sizes: Sequence[tuple[int, int]]) -> Assignment:
    """Labels (N, R) in the order of ``label_anchors``, of images whose objects do not matter."""
    return Assignment.from_flat(
        labels,
        num_classes,
        sizes,
        gt_boxes=[torch.zeros(0, 4)] * len(labels),
        gt_classes=[torch.zeros(0, dtype=torch.int64)] * len(labels),
        valid=torch.ones_like(labels, dtype=torch.bool),
    )


def run_step(model: nn.Module, batch: list[dict], iteration: int = 0) -> dict[str, Tensor]:
    """The losses of one forward pass in training mode."""
    with EventStorage(iteration):
        return model(batch)


def join_two(rank: int, store: str) -> None:
    """
    Make this process one of a group of two that meet in the file ``store``. A rank that waits for a minute for a
    collective that the other has left fails, where Detectron2's groups wait for half an hour.
    """
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=1)
    )


@contextmanager
def watched(name: str) -> Iterator[list]:
    """What the function of that name returns, of those that a training step calls, each time it is called inside."""
    function, results = getattr(distilled_detector, name), []

    def watching(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    with mock.patch.object(distilled_detector, name, watching):
        yield results


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """d loss / d parameter by name; None where the graph does not lead."""
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    return dict(zip(parameters, grads, strict=True))


def reached(grads: Mapping[str, Tensor | None]) -> set[str]:
    """Names of the parameters that receive a gradient which is not zero."""
    return {name for name, grad in grads.items() if grad is not None and grad.count_nonzero()}
