"""GFL teacher on EfficientNet-Lite0, without distillation."""

from detectron2.config import LazyCall as L

from d2kd.modeling import DistilledDetector

from ..common.recipes.aquarium import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.aquarium_gfl import model as _detector

model = L(DistilledDetector)(student=_detector)  # alone: trains as the plain detector, also under AMP and on resume
optimizer.lr = 1e-3
train.max_iter = 2400
train.output_dir = "output/aquarium/gfl_teacher"
