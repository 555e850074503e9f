"""Detectron2's RetinaNet R50-FPN with a distribution for each side of a box, which LD needs."""

from detectron2.config import LazyCall as L

from d2kd.modeling.detectors import DenseHead, DistributionRetinaNet

from .retinanet import model

model._target_ = DistributionRetinaNet
model.pop("box2box_transform")
model.head = L(DenseHead)(
    input_shape=model.head.input_shape,
    num_classes="${..num_classes}",
    num_anchors=9,
    conv_dims=model.head.conv_dims,
    prior_prob=0.01,
    reg_max=16,
)
