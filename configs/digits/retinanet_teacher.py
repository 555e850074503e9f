"""RetinaNet teacher, an ordinary detector."""

from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_retinanet import model

train.output_dir = "output/digits/retinanet_teacher"
