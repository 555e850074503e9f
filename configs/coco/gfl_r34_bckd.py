"""GFL R101 2x -> R34 1x, BCKD with its preset. docs/converting.md has the command that makes the initial weights."""

from .gfl_r50_bckd import dataloader, lr_multiplier, model, optimizer, train

model.student.backbone.bottom_up.stages.depth = 34
train.init_checkpoint = "output/imagenet/R-34.pkl"  # torchvision's, which Detectron2's catalogue does not have
train.output_dir = "output/coco/gfl_r34_bckd"
