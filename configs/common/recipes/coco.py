"""Detectron2's 1x schedule for RetinaNet and FCOS: batch 16, learning rate 0.01, 90k iterations."""

from d2kd.config import get_detectron2_config

from ..data.coco import dataloader
from ..train import train

_cfg = get_detectron2_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
optimizer, lr_multiplier = _cfg.optimizer, _cfg.lr_multiplier

train.max_iter = 90000
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
