"""RetinaNet R101-FPN with distributions, which configs/coco/retinanet_distribution_r101_teacher.py trains."""

from ..models.retinanet_distribution import model

model.backbone.bottom_up.stages.depth = 101
checkpoint = "output/coco/retinanet_distribution_r101_teacher/model_final.pth"
