"""GFL teacher, without distillation."""

from detectron2.config import LazyCall as L

from d2kd.modeling import DistilledDetector

from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.digits_gfl import model as _detector

model = L(DistilledDetector)(student=_detector)  # alone: trains as the plain detector, also under AMP and on resume
train.max_iter = 5000
train.output_dir = "output/digits/gfl_teacher"
