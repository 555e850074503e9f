"""Capacity-limited GFL student on a tenth of the labels, alone: the run that the distilled ones are compared with."""

from .gfl_tenth_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.losses = None
train.output_dir = "output/digits/gfl_tenth_baseline"
