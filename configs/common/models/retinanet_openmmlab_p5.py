"""RetinaNet whose P6 comes from P5: CrossKD's RetinaNet students, whose teachers have it from C5."""

from .retinanet_openmmlab import model

model.backbone.top_block.in_feature = "p5"
model.backbone.top_block.in_channels = "${..out_channels}"
