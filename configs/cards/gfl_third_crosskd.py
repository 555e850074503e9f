"""Small GFL on a third of the labels, distilled; its teacher was trained on all of them."""

from ..common.data.cards_third import dataloader
from .gfl_crosskd import lr_multiplier, model, optimizer, train

train.output_dir = "output/cards/gfl_third_crosskd"
