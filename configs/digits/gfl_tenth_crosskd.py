"""Capacity-limited GFL student on a tenth of the labels, distilled; its teacher was trained on all of them."""

from ..common.data.digits_tenth import dataloader
from .gfl_crosskd import lr_multiplier, model, optimizer, train

train.output_dir = "output/digits/gfl_tenth_crosskd"
