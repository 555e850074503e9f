"""Small GFL that starts from ImageNet weights, distilled; model.losses=null trains the student alone."""

from ..common.models.cards_gfl_lite import model as _student
from .gfl_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.student.backbone = _student.backbone
optimizer.lr = 1e-3
train.output_dir = "output/cards/gfl_lite_crosskd"
