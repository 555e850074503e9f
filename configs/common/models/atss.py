"""ATSS R50-FPN as the papers train it, which converted OpenMMLab checkpoints fit: GFL's node with changes."""

from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransform

from d2kd.modeling.detectors import ATSS, ATSSHead

from .gfl import model

model._target_ = ATSS
model.head._target_ = ATSSHead
model.head.pop("reg_max")
model.box2box_transform = L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0])
