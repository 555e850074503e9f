"""ATSS for devices: gfl_timm.py's backbone and widths."""

from .atss import model
from .gfl_timm import model as _gfl

model.backbone = _gfl.backbone
for _key in ("conv_dims", "input_shape"):
    model.head[_key] = _gfl.head[_key]
model.head_in_features = _gfl.head_in_features
model.anchor_generator = _gfl.anchor_generator
