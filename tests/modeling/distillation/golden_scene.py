"""Detectors with the exported heads, on the exported features, for comparison with the numbers of the papers' code."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from d2kd.modeling import DistilledDetector
from d2kd.modeling.backbones import group_norm
from d2kd.modeling.detectors import ATSS, GFL, ATSSAssigner, ATSSHead, DenseHead, GFLHead
from tests.helpers import PIXELS, run_step, watched

STRIDES = [8, 16, 32, 64, 128]
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
GOLDEN = Path(__file__).parents[2] / "golden"
#: Our predictors' names -> theirs.
PREDICTORS = {
    "RetinaNet": dict(cls_score="retina_cls", bbox_pred="retina_reg"),
    "FCOS": dict(cls_score="conv_cls", bbox_pred="conv_reg", ctrness="conv_centerness"),
    "GFL": dict(cls_score="gfl_cls", bbox_pred="gfl_reg"),
    "ATSS": dict(cls_score="atss_cls", bbox_pred="atss_reg", ctrness="atss_centerness"),
}


class GivenFeatures(Backbone):
    """Returns the golden FPN features whatever the image; pads to multiples of 32."""

    size_divisibility = 32

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def output_shape(self):
        channels = self.features[0].shape[1]
        return {n: ShapeSpec(channels=channels, stride=s) for n, s in zip(LEVELS, STRIDES, strict=True)}

    def forward(self, images):
        return dict(zip(LEVELS, self.features, strict=True))


class GivenHead(nn.Module):
    """Returns the exported predictions, distributions of 17 bins, whatever the features."""

    reg_max = 16

    def __init__(self, *maps: list[Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, features):
        return self.maps


def load_golden(file: str) -> dict[str, Tensor]:
    arrays = np.load(GOLDEN / file)
    return {k: torch.from_numpy(arrays[k]) for k in arrays.files if arrays[k].dtype.kind != "U"}


def to_maps(flat: Tensor, level_hw: Tensor) -> list[Tensor]:
    """(N, R, C) -> per level (N, C, H, W)."""
    parts = flat.split([int(h * w) for h, w in level_hw], dim=1)
    return [
        x.unflatten(1, tuple(hw.tolist())).permute(0, 3, 1, 2).contiguous()
        for x, hw in zip(parts, level_hw, strict=True)
    ]


def to_flat(maps: list[Tensor]) -> Tensor:
    """Per level (N, A, C, H, W) or (N, A, 4, n+1, H, W) -> (N, R, C), R over (level, H, W, A)."""
    return torch.cat([x.flatten(2, -3).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps], dim=1)


def load_head(family: str, head: nn.Module, arrays: dict[str, Tensor], who: str) -> None:
    """The exported weights under our names, with mmdet's anchor slots put in Detectron2's order."""
    weights = {k.removeprefix(f"in/{who}/"): v for k, v in arrays.items() if k.startswith(f"in/{who}/")}
    state = {}
    for subnet, name in (("cls_subnet", "cls_convs"), ("bbox_subnet", "reg_convs")):
        indices = {nn.Conv2d: 0, nn.GroupNorm: 0}
        for key, module in getattr(head, subnet).named_children():
            if not isinstance(module, tuple(indices)):
                continue
            kind = "conv" if isinstance(module, nn.Conv2d) else "gn"
            for x, _ in module.named_parameters():
                state[f"{subnet}.{key}.{x}"] = weights.pop(f"{name}.{indices[type(module)]}.{kind}.{x}")
            indices[type(module)] += 1
    for ours, theirs in PREDICTORS[family].items():
        for x in ("weight", "bias"):
            value = weights.pop(f"{theirs}.{x}")
            if family == "RetinaNet":
                value = value.unflatten(0, (9, -1))[arrays["anchor_perm_d2_from_mmdet"]].flatten(0, 1)
            state[f"{ours}.{x}"] = value
    for level in range(5) if family != "RetinaNet" else ():
        state[f"scales.{level}.scale"] = weights.pop(f"scales.{level}.scale")
    assert not weights  # all that was exported is used
    shapes = {key: value.shape for key, value in head.state_dict().items()}
    head.load_state_dict({key: value.view(shapes[key]) for key, value in state.items()})


def build_golden_detector(family: str, features: list[Tensor], head: nn.Module, num_classes: int = 5) -> DenseDetector:
    common = dict(backbone=GivenFeatures(features), head=head, head_in_features=LEVELS, num_classes=num_classes)
    common.update(PIXELS)
    if family == "FCOS":
        return FCOS(**common)
    if family == "RetinaNet":
        return RetinaNet(
            anchor_generator=DefaultAnchorGenerator(
                sizes=[[4 * s * 2 ** (i / 3) for i in range(3)] for s in STRIDES],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=STRIDES,
                offset=0.0,
            ),
            box2box_transform=Box2BoxTransform(weights=[1.0, 1.0, 1.0, 1.0]),
            anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
            **common,
        )
    generator = DefaultAnchorGenerator(
        sizes=[[8 * s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.0
    )
    return dict(GFL=GFL, ATSS=ATSS)[family](anchor_generator=generator, assigner=ATSSAssigner(topk=9), **common)


def build_head(family: str) -> nn.Module:
    kwargs = dict(input_shape=[ShapeSpec(channels=8)] * 5, num_classes=5, conv_dims=[8] * 4)
    if family == "RetinaNet":
        return RetinaNetHead(num_anchors=9, **kwargs)
    kwargs["norm"] = group_norm(4)
    if family == "FCOS":  # the papers' FCOS scales each level's distances
        return DenseHead(centerness_on="box", scale_levels=True, **kwargs)
    return GFLHead(reg_max=16, **kwargs) if family == "GFL" else ATSSHead(**kwargs)


def watched_step(
    student: DenseDetector, teacher: DenseDetector, losses: Mapping, batch: list[dict], **also: object
) -> SimpleNamespace:
    """
    One training step: ``found``, its losses; ``levels``, each term level by level with weight and normaliser;
    ``regions``, what each term was weighted with; and ``also``.
    """
    losses = {name: instantiate(loss) for name, loss in losses.items()}
    model = DistilledDetector(student=student, teacher=dict(model=teacher, engine="eager"), losses=losses)
    seen = {}
    for name, loss in model.losses.items():
        loss.register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[2], out)}))
    with watched("compute_normalizers") as steps:
        found = run_step(model, batch)
    ((normalizers, _),) = steps
    levels = {name: losses[name].weight * out / normalizers[name] for name, (_, out) in seen.items()}
    return SimpleNamespace(found=found, levels=levels, regions={name: x[0] for name, x in seen.items()}, **also)


def make_scene(boxes: list[Tensor], classes: list[Tensor], size: tuple[int, int]) -> list[dict]:
    """A batch of black images with these objects."""
    return [
        dict(image=torch.zeros(3, *size), instances=Instances(size, gt_boxes=Boxes(b), gt_classes=c))
        for b, c in zip(boxes, classes, strict=True)
    ]
