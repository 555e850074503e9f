"""The cards' GFL with a third level, of stride 8, for the aquarium's small animals (half of them under 24 pixels)."""

from detectron2.layers import ShapeSpec

from .cards_gfl import model
from .photo_backbones import fpn, resnet

model.backbone = fpn(
    resnet(stem=16, widths=[16, 32, 64, 96], out_features=["res3", "res4", "res5"]), ["res3", "res4", "res5"], 48
)
model.head.input_shape = [ShapeSpec(channels=48)] * 3
model.anchor_generator.sizes = [[32], [64], [128]]
model.anchor_generator.strides = [8, 16, 32]
model.head_in_features = ["p3", "p4", "p5"]
model.num_classes = 7
