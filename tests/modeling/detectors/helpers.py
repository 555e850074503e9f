"""Tiny detectors of every class, and ones whose head returns given maps."""

from functools import partial

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from torch import Tensor, nn

from d2kd.modeling.detectors import (
    ATSS,
    GFL,
    ATSSAssigner,
    DenseHead,
    DistributionATSS,
    DistributionBoxes,
    DistributionFCOS,
    DistributionRetinaNet,
)
from tests.helpers import LEVELS, NUM_CLASSES, PIXELS, build_backbone

REG_MAX = 4
CLASSES = {cls.__name__: cls for cls in (GFL, ATSS, DistributionATSS, DistributionRetinaNet, DistributionFCOS)}
DISTRIBUTIONS = [name for name in CLASSES if name != "ATSS"]
#: Keys of their losses.
LOSSES = {
    "GFL": ["loss_cls", "loss_box_reg", "loss_dfl"],
    "ATSS": ["loss_cls", "loss_box_reg", "loss_centerness"],
    "DistributionATSS": ["loss_cls", "loss_box_reg", "loss_centerness"],
    "DistributionRetinaNet": ["loss_cls", "loss_box_reg"],
    "DistributionFCOS": ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"],
}


def build_head(name: str, **kwargs) -> DenseHead:
    """A head whose predictions differ from place to place, by more than the initial ones."""
    options = dict(
        input_shape=[ShapeSpec(channels=8)] * 3,
        num_classes=NUM_CLASSES,
        conv_dims=[8, 8],
        prior_prob=0.1,
        reg_max=None if name == "ATSS" else REG_MAX,
        centerness_on="box" if name.endswith(("ATSS", "FCOS")) else None,
        num_anchors=2 if name == "DistributionRetinaNet" else 1,
        scale_levels=True,
    )
    head = DenseHead(**{**options, **kwargs})
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(head.bbox_pred.weight, std=0.3)
    return head


def build(name: str, *, seed: int = 0, backbone: Backbone | None = None, **kwargs) -> DenseDetector:
    """A detector of class ``name`` on strides 8, 16 and 32."""
    torch.manual_seed(seed)
    options = dict(
        backbone=backbone or build_backbone(norm="FrozenBN"),  # "BN" fails on one cell
        head_in_features=LEVELS,
        num_classes=NUM_CLASSES,
        **PIXELS,
    )
    make_anchors = partial(DefaultAnchorGenerator, strides=[8, 16, 32], aspect_ratios=[1.0])
    if name == "DistributionRetinaNet":
        options["anchor_generator"] = make_anchors(sizes=[[8, 12], [16, 24], [32, 48]], offset=0.5)
        options["anchor_matcher"] = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    elif name != "DistributionFCOS":
        options["anchor_generator"] = make_anchors(sizes=[[16], [32], [64]], offset=0.0)
        options["assigner"] = ATSSAssigner(topk=9)
    options["head"] = kwargs.pop("head", None) or build_head(name)
    return CLASSES[name](**{**options, **kwargs})


class GivenMaps(nn.Module):
    """A head that returns these maps whatever it is given."""

    def __init__(self, *maps: list[Tensor], reg_max: int | None = None) -> None:
        super().__init__()
        self.maps = maps
        self.reg_max = reg_max

    def forward(self, features):
        return list(self.maps)


class GivenSizes(Backbone):
    """Empty features of these (H, W); pads to multiples of 16."""

    size_divisibility = 16

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.sizes = sizes

    def output_shape(self):
        return {name: ShapeSpec(channels=1, stride=s) for name, s in zip(LEVELS, (8, 16, 32), strict=True)}

    def forward(self, images):
        return {name: images.new_zeros(len(images), 1, h, w) for name, (h, w) in zip(LEVELS, self.sizes, strict=True)}


def build_given(name: str, maps: list[list[Tensor]], **kwargs) -> DenseDetector:
    """A detector of class ``name`` whose head returns ``maps``: lists of per-level (N, A*C, H, W)."""
    reg_max = None if name == "ATSS" else REG_MAX
    sizes = [tuple(x.shape[-2:]) for x in maps[0]]
    return build(name, backbone=GivenSizes(sizes), head=GivenMaps(*maps, reg_max=reg_max), **kwargs)


def transposed(detector: DenseDetector, maps: list[list[Tensor]]) -> list[list[Tensor]]:
    """``maps`` as Detectron2's detectors read them, (N, H*W*A, C): logits, what is decoded to boxes, centerness."""
    logits, boxes, *rest = maps
    if isinstance(detector, DistributionBoxes):
        boxes = detector.distances(boxes)
    kinds = zip([logits, boxes, *rest], (detector.num_classes, 4, 1))
    return [[permute_to_N_HWA_K(x, channels) for x in levels] for levels, channels in kinds]


def random_maps(name: str, sizes=((6, 8), (3, 4), (2, 2)), num_images: int = 2, seed: int = 0) -> list[list[Tensor]]:
    """Predictions for images of 48x64 pixels."""
    generator = torch.Generator().manual_seed(seed)
    anchors = 2 if name == "DistributionRetinaNet" else 1
    channels = [anchors * NUM_CLASSES, anchors * 4 * (1 if name == "ATSS" else REG_MAX + 1)]
    if name.endswith(("ATSS", "FCOS")):
        channels.append(1)
    scales = [2.0, 0.5 if name == "ATSS" else 2.0, 2.0]
    return [
        [s * torch.randn(num_images, c, h, w, generator=generator) for h, w in sizes] for c, s in zip(channels, scales)
    ]
