"""FCOS R101-FPN with distributions, which configs/coco/fcos_distribution_r101_teacher.py trains."""

from ..models.fcos_distribution import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/coco/fcos_distribution_r101_teacher/model_final.pth"
