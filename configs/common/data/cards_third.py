"""A third of the cards' images: 72 of 218, a random choice."""

from detectron2.config import LazyCall as L

from d2kd.data import subset

from .cards import dataloader

dataloader.train.dataset = L(subset)(dataset=dataloader.train.dataset, share=0.33)
