"""FCOS for devices: gfl_timm.py's backbone and widths. Distilled, model.input_format has to say RGB: FCOS does not."""

from .fcos import model
from .gfl_timm import model as _gfl

model.backbone = _gfl.backbone
for _key in ("conv_dims", "input_shape", "norm"):
    model.head[_key] = _gfl.head[_key]
model.head_in_features = _gfl.head_in_features
model.pixel_mean, model.pixel_std = _gfl.pixel_mean, _gfl.pixel_std
