"""FCOS R101-FPN of caffe style, 2x multi-scale, converted from OpenMMLab's file: docs/converting.md has the command."""

from ..models.fcos_openmmlab import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/converted/fcos_openmmlab.pth"
