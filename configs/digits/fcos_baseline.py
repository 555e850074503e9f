"""FCOS student alone: the run that the distilled ones are compared with."""

from .fcos_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.losses = None
train.output_dir = "output/digits/fcos_baseline"
