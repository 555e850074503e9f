"""RetinaNet R101 2x -> R50 2x, BCKD with its preset; CrossKD's student (P6 from P5), data and schedule."""

from d2kd.config import distill

from ..common.models.retinanet_openmmlab_p5 import model
from ..common.recipes.openmmlab_2x import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.retinanet_openmmlab import checkpoint
from ..common.teachers.retinanet_openmmlab import model as _teacher

model = distill(model, teacher=_teacher, teacher_checkpoint=checkpoint, method="bckd")
train.output_dir = "output/coco/retinanet_openmmlab_r50_bckd"
