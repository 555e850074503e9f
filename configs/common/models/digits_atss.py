"""The digits' GFL as an ATSS with a distribution for each side of the box, which LD needs."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from d2kd.modeling.backbones import group_norm
from d2kd.modeling.detectors import ATSSHead, DistributionATSS

from .digits_gfl import model as _gfl

model = L(DistributionATSS)(**{key: value for key, value in _gfl.items() if key not in ("_target_", "head")})
model.head = L(ATSSHead)(
    input_shape=[ShapeSpec(channels=48)] * 2,
    num_classes="${..num_classes}",
    conv_dims=[48, 48],
    norm=L(group_norm)(num_groups=8),
    prior_prob=0.01,
    reg_max=8,
)
