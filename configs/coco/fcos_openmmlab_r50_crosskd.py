"""FCOS R101 2x -> R50 2x in OpenMMLab's parameterisation, CrossKD with its preset; the paper's data and schedule."""

from d2kd.config import distill

from ..common.models.fcos_openmmlab import model
from ..common.recipes.fcos_openmmlab_2x import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.fcos_openmmlab import checkpoint
from ..common.teachers.fcos_openmmlab import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="crosskd")
train.output_dir = "output/coco/fcos_openmmlab_r50_crosskd"
