"""ATSS R50-FPN with a distribution for each side of a box, which LD needs."""

from d2kd.modeling.detectors import DistributionATSS

from .atss import model

model._target_ = DistributionATSS
model.pop("box2box_transform")
model.head.reg_max = 16
