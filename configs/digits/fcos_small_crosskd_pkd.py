"""Capacity-limited FCOS student, distilled; model.losses=null trains the student alone."""

from d2kd.config import distill

from ..common.models.digits_fcos_small import model
from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_fcos import checkpoint
from ..common.teachers.digits_fcos import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="crosskd_pkd")
model.losses.crosskd_cls.tail = model.losses.crosskd_loc.tail = 1  # the heads have two blocks
train.output_dir = "output/digits/fcos_small_crosskd_pkd"
