"""What all configs of this folder share."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from tests.foreign.projects import Batches

dataloader = dict(train=L(Batches)())
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[2], num_updates=3),
    warmup_length=0.3,
    warmup_factor=0.1,
)
optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(weight_decay_norm=0.0), lr=0.01, momentum=0.9)
train = dict(
    output_dir="output/student",
    init_checkpoint="",
    max_iter=3,
    log_period=1,
    device="cpu",
    checkpointer=dict(period=100, max_to_keep=1),
)
