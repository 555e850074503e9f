"""The schedule of every digits run; a leaf sets its output_dir, and train.max_iter stretches or shortens it."""

from ..data.digits import dataloader
from ..optim import adamw as optimizer
from ..optim import steps as lr_multiplier
from ..train import train

train.max_iter = 2000
train.eval_period = 500
train.checkpointer.period = 500
train.checkpointer.max_to_keep = 1
train.clip_grad = dict(max_norm=10.0, norm_type=2.0)
