"""FCOS on a plain ViT with a simple pyramid, trained as ViTDet."""

from functools import partial

import torch
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from tests.foreign.projects import Batches

model = L(FCOS)(
    backbone=L(SimpleFeaturePyramid)(
        net=L(ViT)(
            img_size=64,
            pretrain_img_size=64,
            patch_size=16,
            embed_dim=16,
            depth=3,
            num_heads=2,
            drop_path_rate=0.1,
            window_size=2,
            window_block_indexes=[0, 1],
            use_rel_pos=True,
            out_feature="last_feat",
        ),
        in_feature="${.net.out_feature}",
        out_channels=32,
        scale_factors=(2.0, 1.0, 0.5),
        norm="LN",
        square_pad=64,
    ),
    head=L(FCOSHead)(
        input_shape=[ShapeSpec(channels=32)] * 3,
        num_classes="${..num_classes}",
        conv_dims=[32, 32],
        prior_prob=0.1,
        norm="GN",
    ),
    num_classes=3,
    head_in_features=["p3", "p4", "p5"],
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)

dataloader = dict(train=L(Batches)())
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[2], num_updates=3),
    warmup_length=0.3,
    warmup_factor=0.1,
)
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        lr_factor_func=partial(get_vit_lr_decay_rate, num_layers=3, lr_decay_rate=0.7),
        overrides={"pos_embed": {"weight_decay": 0.0}},
    ),
    lr=1e-3,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)
train = dict(
    output_dir="output/student",
    init_checkpoint="",
    max_iter=3,
    log_period=1,
    device="cpu",
    checkpointer=dict(period=100, max_to_keep=1),
)
