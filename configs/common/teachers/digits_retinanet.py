"""The digits teacher: the student's detector on a wider and deeper backbone."""

from ..models.digits_backbone import teacher_backbone
from ..models.digits_retinanet import model

model.backbone = teacher_backbone
checkpoint = "output/digits/retinanet_teacher/model_final.pth"
