"""GFL teacher on EfficientNet-Lite0, trained on a third of the labels alone."""

from ..common.data.aquarium_third import dataloader
from .gfl_teacher import lr_multiplier, model, optimizer, train

train.output_dir = "output/aquarium/gfl_third_teacher"
