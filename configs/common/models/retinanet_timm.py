"""RetinaNet for devices: gfl_timm.py's backbone and widths, Detectron2's nine anchors a cell."""

from .gfl_timm import model as _gfl
from .retinanet import model

model.backbone = _gfl.backbone
model.head.conv_dims = _gfl.head.conv_dims
model.head.norm = "GN"
model.head.input_shape = _gfl.head.input_shape
model.head_in_features = _gfl.head_in_features
model.anchor_generator.sizes = [[size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (32, 64, 128)]
model.anchor_generator.strides = [8, 16, 32]
model.pixel_mean, model.pixel_std, model.input_format = _gfl.pixel_mean, _gfl.pixel_std, "RGB"
