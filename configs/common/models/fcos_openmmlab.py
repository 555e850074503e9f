"""
FCOS R50-FPN as CrossKD trains it, and the node that converted OpenMMLab checkpoints of it fit. It is Detectron2's FCOS
with another parameterisation: distances are exponentials in pixels, each level has a learned scale, centerness is
predicted from the classification tower, every point in a box is a candidate. The backbone is of caffe style: BGR
images, std 1, stride in the first 1x1 convolution, batch norm frozen.

The losses are Detectron2's (unweighted GIoU in place of -ln IoU weighted by centerness), and so is the score, the
square root of class x centerness: the order of detections is the same. The threshold is lower than Detectron2's 0.2
because OpenMMLab's 0.05 is for the class score alone.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling.box_regression import Box2BoxTransformLinear

from d2kd.config import get_detectron2_config
from d2kd.modeling.detectors import DenseHead

from .gfl import model as _gfl

model = get_detectron2_config("common/models/fcos.py").model
model.backbone = _gfl.backbone
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "FrozenBN"
model.backbone.bottom_up.stages.stride_in_1x1 = True
model.backbone.top_block.relu_before_p7 = True
model.head = L(DenseHead)(
    input_shape=_gfl.head.input_shape,
    num_classes="${..num_classes}",
    conv_dims=[256, 256, 256, 256],
    norm="GN",
    prior_prob=0.01,
    centerness_on="cls",
    scale_levels=True,
    box_activation="exp",
)
model.box2box_transform = L(Box2BoxTransformLinear)(normalize_by_size=False)
model.center_sampling_radius = float("inf")  # none
model.test_score_thresh = 0.05
model.test_nms_thresh = 0.5
model.pixel_mean = [102.9801, 115.9465, 122.7717]
model.pixel_std = [1.0, 1.0, 1.0]
