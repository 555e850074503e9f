"""RetinaNet R50 1x alone: the run that the distilled ones are compared with."""

from .retinanet_r50_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.losses = None
train.output_dir = "output/coco/retinanet_r50_baseline"
