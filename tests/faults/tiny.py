"""A run of seconds: a student of $FAULTS_FAMILY with a teacher, on the images of $TINY_DATASET. Not a test."""

import os

from detectron2.config import LazyCall as L

from d2kd.modeling import DistilledDetector
from tests.helpers import build_detector, preset

from ..engine.tiny_retinanet import dataloader, lr_multiplier, optimizer, train

_family = os.environ["FAULTS_FAMILY"]
model = L(DistilledDetector)(
    student=L(build_detector)(family=_family, num_classes=2),
    teacher=dict(
        model=L(build_detector)(family=_family, num_classes=2, seed=1), checkpoint=os.environ["FAULTS_TEACHER"]
    ),
    losses=preset("crosskd", _family, tail=1),
)
optimizer.lr = 0.001
dataloader.train.num_workers = 0
train.update(max_iter=12, eval_period=8, log_period=1, seed=1, device="cpu", checkpointer=dict(period=3, max_to_keep=2))
train.ema = dict(decay=0.9)
