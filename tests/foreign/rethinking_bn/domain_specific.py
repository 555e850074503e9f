"""Each level normalised alone, with statistics of its own; scale and shift are shared."""

from .retinanet import dataloader, lr_multiplier, model, optimizer, train

model.head.norm = "SyncBN"  # which RetinaNetHead turns into a CycleBatchNormList
