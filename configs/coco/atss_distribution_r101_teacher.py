"""ATSS R101-FPN with distributions, the teacher of atss_distribution_r50_ld.py, without distillation."""

from detectron2.config import LazyCall as L

from d2kd.modeling import DistilledDetector

from ..common.recipes.openmmlab_1x import dataloader, lr_multiplier, optimizer, train
from ..common.teachers.atss_distribution import model as _detector

model = L(DistilledDetector)(student=_detector)  # alone: trains as the plain detector, also under AMP and on resume
train.init_checkpoint = "output/imagenet/R-101.pkl"  # torchvision's; docs/converting.md has the command
train.output_dir = "output/coco/atss_distribution_r101_teacher"
