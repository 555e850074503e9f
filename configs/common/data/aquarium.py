"""Animals in two aquariums: 320 pixels on the long side; `d2kd data get aquarium` fetches them."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from .cards import dataloader

dataloader.train.dataset.names = "aquarium_train"
dataloader.train.mapper.augmentations[0].short_edge_length = [192, 288]
dataloader.train.mapper.augmentations[0].max_size = 512
dataloader.train.mapper.augmentations[1].crop_size = [224, 224]
dataloader.train.mapper.augmentations.append(L(T.RandomFlip)(horizontal=True))
dataloader.test.dataset.names = "aquarium_val"
dataloader.test.mapper.augmentations[0].short_edge_length = 240
