"""The same detector on a larger ViT."""

from .fcos_vit import dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.embed_dim = 32
model.backbone.net.depth = 4
train.output_dir = "output/teacher"
