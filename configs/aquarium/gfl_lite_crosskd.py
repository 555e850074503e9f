"""Small GFL that starts from ImageNet weights, distilled; model.losses=null trains the student alone."""

from ..common.models.cards_gfl_lite import model as _student
from .gfl_crosskd import dataloader, lr_multiplier, model, optimizer, train

_student.backbone.scale_factors = [2.0, 1.0, 0.5]  # strides 8, 16 and 32
model.student.backbone = _student.backbone
optimizer.lr = 1e-3
train.output_dir = "output/aquarium/gfl_lite_crosskd"
