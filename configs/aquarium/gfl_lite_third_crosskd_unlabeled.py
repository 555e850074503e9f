"""
gfl_lite_third_crosskd with the other 259 images: every step has the same 4 labelled images, and 4 others without their
labels. So the two differ in these images only.
"""

from detectron2.config import LazyCall as L

from d2kd.data import subset

from .gfl_lite_third_crosskd import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.unlabeled = L(subset)(dataset=dataloader.train.dataset.dataset, share=0.33, rest=True)
dataloader.train.unlabeled_batch_size = 4
dataloader.train.total_batch_size = 8  # of both kinds
train.output_dir = "output/aquarium/gfl_lite_third_crosskd_unlabeled"
