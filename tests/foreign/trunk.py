"""A detector and a head of nobody's family, for which docs/own_detector.md writes an adapter. Not a test."""

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from fvcore.nn import giou_loss, sigmoid_focal_loss
from torch import nn
from torch.nn import functional as F

from tests.helpers import LEVELS, NUM_CLASSES, PIXELS, build_backbone


class TrunkHead(nn.Module):
    """One trunk for both tasks, then the distances to the four sides in strides, and class logits."""

    def __init__(self, channels, num_classes, depth):
        super().__init__()
        self.trunk = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.ReLU())
            for _ in range(depth)
        )
        self.where = nn.Conv2d(channels, 4, 3, padding=1)
        self.what = nn.Conv2d(channels, num_classes, 3, padding=1)
        nn.init.constant_(self.what.bias, -2.0)

    def forward(self, features):
        distances, logits = [], []
        for x in features:
            for block in self.trunk:
                x = block(x)
            distances.append(F.softplus(self.where(x)))
            logits.append(self.what(x))
        return distances, logits


class TrunkDetector(DenseDetector):
    """A point a cell answers for the smallest object that it lies in."""

    def __init__(self, *, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        strides = [self.backbone.output_shape()[name].stride for name in self.head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.5
        )

    def flat(self, predictions, anchors):
        """Boxes (N, R, 4) and logits (N, R, K)."""
        distances, logits = (torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1) for maps in predictions)
        anchors = Boxes.cat(anchors)
        strides = (anchors.tensor[:, 2:] - anchors.tensor[:, :2]).repeat(1, 2)
        sides = distances * strides * strides.new_tensor([-1, -1, 1, 1])
        return anchors.get_centers().repeat(1, 2) + sides, logits

    @torch.no_grad()
    def label_anchors(self, anchors, gt_instances):
        centers = Boxes.cat(anchors).get_centers()
        labels, matched = [], []
        for instances in gt_instances:
            boxes = instances.gt_boxes.tensor
            inside = ((centers[None] > boxes[:, None, :2]) & (centers[None] < boxes[:, None, 2:])).all(dim=2)
            areas = torch.where(inside, instances.gt_boxes.area()[:, None], torch.inf)
            areas = torch.cat([areas, areas.new_full((1, len(centers)), torch.finfo().max)])
            owner = areas.argmin(dim=0)
            labels.append(F.pad(instances.gt_classes, (0, 1), value=self.num_classes)[owner])
            matched.append(F.pad(boxes, (0, 0, 0, 1))[owner])
        return labels, matched

    def forward_training(self, images, features, predictions, gt_instances):
        anchors = self.anchor_generator(features)
        labels, matched = (torch.stack(x) for x in self.label_anchors(anchors, gt_instances))
        boxes, logits = self.flat(predictions, anchors)
        positive = labels != self.num_classes
        count = positive.sum().clamp(min=1)
        targets = F.one_hot(labels, self.num_classes + 1)[..., :-1].to(logits)
        return {
            "loss_what": sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2, reduction="sum") / count,
            "loss_where": giou_loss(boxes[positive], matched[positive], reduction="sum") / count,
        }

    def forward_inference(self, images, features, predictions):
        boxes, logits = self.flat(predictions, self.anchor_generator(features))
        results = []
        for size, image_boxes, scores in zip(images.image_sizes, boxes, logits.sigmoid()):
            scores, classes = scores.max(dim=1)
            keep = batched_nms(image_boxes, scores, classes, 0.6)[:100]
            results.append(
                Instances(size, pred_boxes=Boxes(image_boxes[keep]), scores=scores[keep], pred_classes=classes[keep])
            )
        return results


def build_trunk_detector(width=4, depth=2):
    return TrunkDetector(
        backbone=build_backbone(width=width),
        head=TrunkHead(8, NUM_CLASSES, depth),
        head_in_features=LEVELS,
        num_classes=NUM_CLASSES,
        **PIXELS,
    )
