"""ATSS R101-FPN, 1x, converted from OpenMMLab's file: docs/converting.md has the command."""

from ..models.atss import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/converted/atss_r101.pth"
