"""GFL teacher on EfficientNet-Lite0, trained on a third of the labels alone."""

from ..common.data.cards_third import dataloader
from .gfl_teacher import lr_multiplier, model, optimizer, train

train.output_dir = "output/cards/gfl_third_teacher"
