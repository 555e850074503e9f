"""COCO 2017 as Detectron2 sets it up (short side 640 to 800, grouped by aspect ratio), with an order that resumes."""

from detectron2.config import LazyCall as L

from d2kd.config import get_detectron2_config
from d2kd.data import build_train_loader

dataloader = get_detectron2_config("COCO-Detection/retinanet_R_50_FPN_1x.py").dataloader
dataloader.train = L(build_train_loader)(
    dataset=dataloader.train.dataset,
    mapper=dataloader.train.mapper,
    total_batch_size=16,
    num_workers=4,
    seed="${train.seed}",
    aspect_ratio_grouping=True,
    pin_memory=True,
    persistent_workers=True,
)
