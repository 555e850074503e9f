"""Detectron2's own FCOS R50-FPN node."""

from d2kd.config import get_detectron2_config

model = get_detectron2_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
