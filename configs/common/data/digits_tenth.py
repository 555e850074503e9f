"""A tenth of the digits' labels: the first 800 of the 8000 images, a random choice since every image is."""

from .digits import dataloader

dataloader.train.dataset.images = [0, 800]
