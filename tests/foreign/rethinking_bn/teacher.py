"""The detector of shared_training.py, wider."""

from .shared_training import dataloader, lr_multiplier, model, optimizer, train

model.backbone.width = 8
train.output_dir = "output/teacher"
