"""The cards' teacher: the student's detector on EfficientNet-Lite0 with ImageNet weights."""

from ..models.cards_gfl import model
from ..models.photo_backbones import fpn, lite0

model.backbone = fpn(lite0(out_indices=[3, 4], freeze_at=3), ["res4", "res5"], 48)
checkpoint = "output/cards/gfl_teacher/model_final.pth"
