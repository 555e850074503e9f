"""GFL R101 2x -> R50 1x, LD with its preset; the papers' data and schedule."""

from d2kd.config import distill

from ..common.models.gfl import model
from ..common.recipes.openmmlab_1x import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.gfl_r101 import checkpoint
from ..common.teachers.gfl_r101 import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="ld")
train.output_dir = "output/coco/gfl_r50_ld"
