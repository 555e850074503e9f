"""Optimizers and schedules. Schedules are fractions of ``train.max_iter``: changing that stretches them."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

adamw = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
    lr=3e-3,
    weight_decay=1e-2,
)

# Detectron2's 1x: drops at 6/9 and 8/9 of the schedule.
steps = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[6, 8, 9]),
    warmup_length=0.05,
    warmup_method="linear",
    warmup_factor=0.001,
)
