"""
RetinaNet R50-FPN with the backbone that the papers train, which converted OpenMMLab checkpoints fit: Detectron2's node
with changes. P6 comes from C5, and P7 from P6 without a ReLU.
"""

from d2kd.config import get_detectron2_config

from .gfl import model as _gfl

model = get_detectron2_config("common/models/retinanet.py").model
model.backbone = _gfl.backbone
model.backbone.top_block.in_feature = "res5"
model.backbone.top_block.in_channels = 2048
model.head.input_shape = _gfl.head.input_shape
model.pixel_mean = _gfl.pixel_mean
model.pixel_std = _gfl.pixel_std
model.input_format = "RGB"
