"""
GFL for devices: MobileNetV3 Small, an FPN of 96 channels at strides 8, 16 and 32, heads of two blocks. On such a
backbone the papers' four blocks of 256 channels would cost more than all the rest. timm_backbones.py has others.
"""

from .gfl import model
from .timm_backbones import mobilenetv3_small as _backbone

model.backbone.bottom_up = _backbone
model.backbone.out_channels = 96
model.backbone.norm = "BN"
model.backbone.top_block = None
model.head.conv_dims = [96, 96]
model.head.input_shape = model.head.input_shape[:3]
model.head_in_features = ["p3", "p4", "p5"]
model.anchor_generator.sizes = [[64], [128], [256]]
model.anchor_generator.strides = [8, 16, 32]
