"""All levels normalised together."""

from tests.foreign.projects import SharedTrainingHead

from .retinanet import dataloader, lr_multiplier, model, optimizer, train

model.head._target_ = SharedTrainingHead
