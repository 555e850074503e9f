"""
CrossKD's schedule for FCOS: 2x with the short side 640 or 800 at random, BGR images, a constant warm-up of a third of
the learning rate, biases at twice the rate and without weight decay, gradients clipped to a norm of 35. (Detectron2
knows biases by name, so that those of group norms are among them; OpenMMLab leaves them out.)
"""

from .openmmlab_2x import dataloader, lr_multiplier, optimizer, train

dataloader.train.mapper.augmentations[0].short_edge_length = [640, 800]
dataloader.train.mapper.image_format = "BGR"
optimizer.params.bias_lr_factor = 2.0
optimizer.params.weight_decay_bias = 0.0
lr_multiplier.warmup_method = "constant"
lr_multiplier.warmup_factor = 1 / 3
train.clip_grad = dict(max_norm=35.0, norm_type=2.0)
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"  # caffe style, like the teacher
