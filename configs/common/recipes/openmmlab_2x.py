"""The papers' 2x schedule: 24 epochs, the learning rate drops at 16 and 22; the 1x recipe otherwise."""

from .openmmlab_1x import ITERATIONS_PER_EPOCH, dataloader, lr_multiplier, optimizer, train

train.max_iter = 24 * ITERATIONS_PER_EPOCH
lr_multiplier.scheduler.milestones = [16, 22, 24]
lr_multiplier.warmup_length = 500 / (24 * ITERATIONS_PER_EPOCH)
