"""RetinaNet R101 3x -> R50 1x, BCKD with its preset."""

from d2kd.config import distill

from ..common.models.retinanet import model
from ..common.recipes.coco import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.retinanet import checkpoint
from ..common.teachers.retinanet import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="bckd")
train.output_dir = "output/coco/retinanet_r50_bckd"
