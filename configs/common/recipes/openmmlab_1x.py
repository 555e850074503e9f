"""
The papers' 1x schedule: 12 epochs of 117266 images (those with objects; OpenMMLab leaves out the few smaller than 32
pixels too), batch 16, learning rate 0.01, 0.001 and 0.0001 from epochs 0, 8 and 11, a linear warm-up of 500 iterations
from 0.001 of it, weight decay 1e-4 on norms as well.
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ..data.coco_800 import dataloader
from ..train import train

ITERATIONS_PER_EPOCH = 7330

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"),
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[8, 11, 12]),
    warmup_length=500 / (12 * ITERATIONS_PER_EPOCH),
    warmup_method="linear",
    warmup_factor=0.001,
)

train.max_iter = 12 * ITERATIONS_PER_EPOCH
train.eval_period = ITERATIONS_PER_EPOCH
train.checkpointer.period = ITERATIONS_PER_EPOCH
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
