"""Capacity-limited ATSS student alone: the run that the distilled ones are compared with."""

from .atss_ld import dataloader, lr_multiplier, model, optimizer, train

model.losses = None
train.output_dir = "output/digits/atss_baseline"
