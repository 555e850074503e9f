"""ATSS R101-FPN with distributions, which configs/coco/atss_distribution_r101_teacher.py trains."""

from ..models.atss_distribution import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/coco/atss_distribution_r101_teacher/model_final.pth"
