"""FCOS with distributions, R101 -> R50 1x, LD with its preset; its teacher has to be trained first."""

from d2kd.config import distill

from ..common.models.fcos_distribution import model
from ..common.recipes.coco import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.fcos_distribution import checkpoint
from ..common.teachers.fcos_distribution import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="ld")
train.output_dir = "output/coco/fcos_distribution_r50_ld"
