"""Capacity-limited GFL student, distilled; model.losses=null trains the student alone."""

from d2kd.config import distill

from ..common.models.digits_gfl import model
from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_gfl import checkpoint
from ..common.teachers.digits_gfl import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="ld")
# Tuned on COCO: sums over the locations of an image, of which the digits have fewer.
model.losses.ld_main.weight, model.losses.ld_vlr.weight = 4 * 0.25, 4 * 0.25 / 4
train.output_dir = "output/digits/gfl_ld"
