"""GFL R101-FPN, 2x multi-scale, converted from OpenMMLab's file: docs/converting.md has the command."""

from ..models.gfl import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/converted/gfl_r101.pth"
