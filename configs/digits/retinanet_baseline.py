"""RetinaNet student alone: the run that the distilled ones are compared with."""

from .retinanet_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.losses = None
train.output_dir = "output/digits/retinanet_baseline"
