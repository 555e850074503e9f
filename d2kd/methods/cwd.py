"""CWD's presets: the paper's formula on FPN features; temperature and weight are this library's."""

from detectron2.config import LazyCall as L

from d2kd.losses import ChannelWiseKD
from d2kd.methods.base import Method

# The paper's figures for detectors are not known here. "images" is half the images: 0.5 is the mean over images.
_LOSSES = dict(cwd=L(ChannelWiseKD)(weight=0.5, temperature=1.0, region="everywhere", normalizer="images"))

CWD = Method(
    paper="Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021",
    needs=("features of the same width, or losses.cwd.projector_channels",),
    presets={"RetinaNet": _LOSSES, "FCOS": _LOSSES, "GFL": _LOSSES, "ATSS": _LOSSES},
    reconstructed="CWD's temperature, weight and normaliser on detectors; the formula is the paper's",
)
