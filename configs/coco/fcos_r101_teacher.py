"""FCOS R101-FPN 1x, the teacher of the other FCOS configs."""

from ..common.recipes.coco import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.fcos import model

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/coco/fcos_r101_teacher"
