"""COCO 2017 as the papers read it: RGB, the short side 800 pixels (the long one at most 1333) in training too."""

from .coco import dataloader

dataloader.train.mapper.augmentations[0].short_edge_length = [800]
dataloader.train.mapper.image_format = "RGB"  # the test mapper follows it
