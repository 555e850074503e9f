"""FCOS R101 1x -> R50 1x, CrossKD with its preset."""

from d2kd.config import distill

from ..common.models.fcos import model
from ..common.recipes.coco import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.fcos import checkpoint
from ..common.teachers.fcos import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="crosskd")
train.output_dir = "output/coco/fcos_r50_crosskd"
