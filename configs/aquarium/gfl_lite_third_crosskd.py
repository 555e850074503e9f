"""gfl_lite_crosskd on a third of the labels; its teacher was trained on all of them."""

from ..common.data.aquarium_third import dataloader
from .gfl_lite_crosskd import lr_multiplier, model, optimizer, train

train.output_dir = "output/aquarium/gfl_lite_third_crosskd"
