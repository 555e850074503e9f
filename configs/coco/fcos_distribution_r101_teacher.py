"""FCOS R101-FPN with distributions, the teacher of fcos_distribution_r50_ld.py, without distillation."""

from detectron2.config import LazyCall as L

from d2kd.modeling import DistilledDetector

from ..common.recipes.coco import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.fcos_distribution import model as _detector

model = L(DistilledDetector)(student=_detector)  # alone: trains as the plain detector, also under AMP and on resume
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/coco/fcos_distribution_r101_teacher"
