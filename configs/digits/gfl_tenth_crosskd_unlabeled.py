"""
gfl_tenth_crosskd with 4x unlabeled images: every step has its 8 labelled images, the same ones, and 8 out of 3200 more,
whose labels are withheld. So the two differ in these images alone, and a step costs about twice as much.
"""

from detectron2.config import LazyCall as L

from d2kd.data.digits import get_digits

from .gfl_tenth_crosskd import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.unlabeled = L(get_digits)(names="digits_train", images=[800, 4000])
dataloader.train.unlabeled_batch_size = 8
dataloader.train.total_batch_size = 16  # of both kinds
train.output_dir = "output/digits/gfl_tenth_crosskd_unlabeled"
