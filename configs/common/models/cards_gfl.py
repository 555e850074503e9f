"""The digits' GFL for the cards: strides 16 and 32, a ResNet from scratch, RGB images."""

from .digits_gfl import model
from .photo_backbones import fpn, resnet

model.backbone = fpn(resnet(stem=16, widths=[16, 32, 64, 96], out_features=["res4", "res5"]), ["res4", "res5"], 48)
# The cards are 35 to 100 pixels where the short side is 144.
model.anchor_generator.sizes = [[64], [128]]
model.anchor_generator.strides = [16, 32]
model.head_in_features = ["p4", "p5"]
model.num_classes = 6
model.pixel_mean = [127.5, 127.5, 127.5]
model.pixel_std = [127.5, 127.5, 127.5]
model.input_format = "RGB"
