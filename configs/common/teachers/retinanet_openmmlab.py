"""RetinaNet R101-FPN, 2x, converted from OpenMMLab's file: docs/converting.md has the command."""

from ..models.retinanet_openmmlab import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/converted/retinanet_openmmlab.pth"
