"""Small GFL from scratch, alone: the run that the distilled ones are compared with."""

from .gfl_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.losses = None
train.output_dir = "output/cards/gfl_baseline"
