"""Capacity-limited GFL student, distilled by a trained copy of itself (self-LD): run gfl_baseline.py first."""

from d2kd.config import distill

from ..common.models.digits_gfl import model
from ..common.recipes.digits import dataloader, lr_multiplier, optimizer, train

model = distill(model, teacher=model, teacher_checkpoint="output/digits/gfl_baseline/model_final.pth", method="ld")
model.losses.ld_main.weight, model.losses.ld_vlr.weight = 4 * 0.25, 4 * 0.25 / 4  # these as in gfl_ld.py
train.output_dir = "output/digits/gfl_self_ld"
