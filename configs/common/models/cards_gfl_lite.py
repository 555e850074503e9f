"""The cards' GFL on EfficientNet-Lite0 with ImageNet weights, cut after stride 16: what a phone might run."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import SimpleFeaturePyramid

from .cards_gfl import model
from .photo_backbones import lite0

model.backbone = L(SimpleFeaturePyramid)(
    net=lite0(out_indices=[3], freeze_at=3),
    in_feature="res4",
    out_channels=48,
    scale_factors=[1.0, 0.5],  # strides 16 and 32
    norm="BN",
)
