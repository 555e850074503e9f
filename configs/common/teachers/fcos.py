"""FCOS R101-FPN, trained by configs/coco/fcos_r101_teacher.py: the model zoo has no FCOS weights."""

from ..models.fcos import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/coco/fcos_r101_teacher/model_final.pth"
