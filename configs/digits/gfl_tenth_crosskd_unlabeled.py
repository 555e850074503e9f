"""
gfl_tenth_crosskd with 4x as many unlabeled images: every step has the same 8 labelled images, and 8 of 3200 others
without their labels. So the two differ in these images only, and a step costs about twice as much.
"""

from detectron2.config import LazyCall as L

from d2kd.data.digits import get_digits

from .gfl_tenth_crosskd import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.unlabeled = L(get_digits)(names="digits_train", images=[800, 4000])
dataloader.train.unlabeled_batch_size = 8
dataloader.train.total_batch_size = 16  # of both kinds
train.output_dir = "output/digits/gfl_tenth_crosskd_unlabeled"
