"""Small GFL from scratch, distilled; model.losses=null trains the student alone."""

from d2kd.config import distill

from ..common.models.aquarium_gfl import model
from ..common.recipes.aquarium import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.aquarium_gfl import checkpoint
from ..common.teachers.aquarium_gfl import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="crosskd")
train.output_dir = "output/aquarium/gfl_crosskd"
