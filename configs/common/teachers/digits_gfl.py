"""The digits teacher: the student's detector on a wider and deeper backbone."""

from ..models.digits_backbone import teacher_backbone
from ..models.digits_gfl import model

model.backbone = teacher_backbone
checkpoint = "output/digits/gfl_teacher/model_final.pth"
