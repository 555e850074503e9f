"""FCOS teacher, an ordinary detector."""

from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_fcos import model

train.max_iter = 5000
train.output_dir = "output/digits/fcos_teacher"
