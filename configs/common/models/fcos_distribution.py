"""Detectron2's FCOS R50-FPN with a distribution for each side of a box, which LD needs."""

from detectron2.config import LazyCall as L

from d2kd.modeling.detectors import DenseHead, DistributionFCOS

from .fcos import model

model._target_ = DistributionFCOS
model.head = L(DenseHead)(
    input_shape=model.head.input_shape,
    num_classes="${..num_classes}",
    conv_dims=model.head.conv_dims,
    norm="GN",
    prior_prob=0.01,
    centerness_on="box",
    scale_levels=True,
    reg_max=16,
)
