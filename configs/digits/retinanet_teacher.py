"""RetinaNet teacher, an ordinary detector."""

from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_retinanet import model

train.max_iter = 5000
train.output_dir = "output/digits/retinanet_teacher"
