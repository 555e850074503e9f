"""A third of the aquarium's images: 127 of 386, a random choice."""

from detectron2.config import LazyCall as L

from d2kd.data import subset

from .aquarium import dataloader

dataloader.train.dataset = L(subset)(dataset=dataloader.train.dataset, share=0.33)
