"""GFL student with an ATSS teacher: CrossKD sends the student's taps through the head of another family."""

from d2kd.config import distill

from ..common.models.digits_gfl import model
from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_atss import checkpoint
from ..common.teachers.digits_atss import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="crosskd")
train.output_dir = "output/digits/gfl_crosskd_from_atss"
