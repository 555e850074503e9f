"""GFL R101 2x -> R18 1x, CrossKD with its preset. docs/converting.md has the command that makes the initial weights."""

from .gfl_r50_crosskd import dataloader, lr_multiplier, model, optimizer, train

model.student.backbone.bottom_up.stages.depth = 18
train.init_checkpoint = "output/imagenet/R-18.pkl"  # torchvision's, which Detectron2's catalogue does not have
train.output_dir = "output/coco/gfl_r18_crosskd"
