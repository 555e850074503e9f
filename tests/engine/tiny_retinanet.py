"""A LazyConfig run of seconds: a RetinaNet of 20 k parameters on the images of $TINY_DATASET. Not a test."""

import os

import torch
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, ResNet, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import LinearParamScheduler

import d2kd
from d2kd.data import build_train_loader

_folder = os.environ["TINY_DATASET"]
_name = f"tiny:{_folder}"
if _name not in DatasetCatalog.list():
    register_coco_instances(_name, {}, f"{_folder}/instances.json", _folder)

model = L(RetinaNet)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=8, norm="BN"),
            stages=[
                [L(BasicBlock)(in_channels=8, out_channels=12, stride=2, norm="BN")],
                [L(BasicBlock)(in_channels=12, out_channels=16, stride=2, norm="BN")],
            ],
            out_features=["res2", "res3"],
        ),
        in_features=["res2", "res3"],
        out_channels=16,
    ),
    head=L(RetinaNetHead)(input_shape=[ShapeSpec(channels=16)] * 2, num_classes=2, conv_dims=[16], num_anchors=1),
    anchor_generator=L(DefaultAnchorGenerator)(sizes=[[16], [32]], aspect_ratios=[1.0], strides=[8, 16]),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    num_classes=2,
    head_in_features=["p3", "p4"],
    pixel_mean=[128.0, 128.0, 128.0],
    pixel_std=[64.0, 64.0, 64.0],
    input_format="BGR",
)
optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(), lr=0.01, momentum=0.9)
lr_multiplier = L(LinearParamScheduler)(start_value=1.0, end_value=1.0)
dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names=_name),
        mapper=L(DatasetMapper)(is_train=True, augmentations=[L(T.RandomFlip)()], image_format="BGR"),
        total_batch_size=4,
        seed="${train.seed}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=_name, filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="BGR"),
    ),
    evaluator=L(COCOEvaluator)(dataset_name=_name),
)
train = d2kd.get_config("common/train.py").train
train.update(max_iter=4, eval_period=2, log_period=1, seed=1, device="cpu", checkpointer=dict(period=2))
