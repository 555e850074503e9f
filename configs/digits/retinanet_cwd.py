"""RetinaNet student, distilled; model.losses=null trains the student alone."""

from d2kd.config import distill

from ..common.models.digits_retinanet import model
from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_retinanet import checkpoint
from ..common.teachers.digits_retinanet import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="cwd")
train.output_dir = "output/digits/retinanet_cwd"
