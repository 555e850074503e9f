"""The schedule of every run on the aquarium: that of the cards."""

from ..data.aquarium import dataloader
from .cards import lr_multiplier, optimizer, train
