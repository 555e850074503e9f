"""Self-LD: GFL R50 1x -> R50 1x, a trained copy of the student teaches it."""

from d2kd.config import distill

from ..common.models.gfl import model
from ..common.recipes.openmmlab_1x import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.gfl_r50 import checkpoint
from ..common.teachers.gfl_r50 import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="ld")
train.output_dir = "output/coco/gfl_self_ld_r50"
