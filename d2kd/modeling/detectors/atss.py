"""ATSS: a RetinaNet of one anchor a cell whose positives are chosen adaptively, with centerness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor, nn
from torch.nn import functional as F

from d2kd.losses.iou_localization import iou_loss
from d2kd.modeling.detectors.base import AssignedDetector
from d2kd.modeling.detectors.config import yacs_arguments
from d2kd.modeling.detectors.detection_losses import LevelLabels, centerness_targets, mean_over_ranks
from d2kd.modeling.detectors.distribution import DistributionBoxes
from d2kd.modeling.detectors.head import DenseHead, Norm
from d2kd.modeling.detectors.interface import BoxTransform, reg_max_of

__all__ = ["ATSS", "ATSSHead"]


class ATSSHead(DenseHead):
    """ATSS's head: :class:`DenseHead` with centerness on the box tower, a learned scale for each level, group norm."""

    def __init__(
        self, *, norm: Norm = "GN", centerness_on: str = "box", scale_levels: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(norm=norm, centerness_on=centerness_on, scale_levels=scale_levels, **kwargs)


@META_ARCH_REGISTRY.register()
class ATSS(AssignedDetector):
    """
    "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection" (CVPR
    2020).

    The focal loss and that of centerness are divided by the number of positives (at least one an image), GIoU, which
    centerness weighs, by the sum of the positives' centerness targets (at least 1); both are means over ranks.

    Args:
        focal_loss_alpha, focal_loss_gamma: of the focal loss.
        box_loss_weight: of the GIoU loss.
        centerness_loss_weight: of the centerness loss.
        box2box_transform: None: the paper's ``Box2BoxTransform(weights=(10, 10, 5, 5))``.
        kwargs: see :class:`AssignedDetector`. The paper has one square anchor a cell, 8 strides wide:
            ``DefaultAnchorGenerator(sizes=[[64], [128], ...], aspect_ratios=[1.0], offset=0.0)``.

    Raises:
        ValueError: a head that predicts distributions, which :class:`DistributionATSS` reads.
    """

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        box2box_transform: BoxTransform | None = None,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_loss_weight: float = 2.0,
        centerness_loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        reg_max = reg_max_of(head)
        if reg_max is not None and not isinstance(self, DistributionBoxes):
            raise ValueError(
                f"{type(self).__name__} reads four numbers a box, and its head predicts distributions "
                f"(reg_max {reg_max}): use DistributionATSS, or set the head's reg_max to None."
            )
        if box2box_transform is None:
            box2box_transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
        super().__init__(head=head, box2box_transform=box2box_transform, **kwargs)
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_loss_weight = box_loss_weight
        self.centerness_loss_weight = centerness_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.ATSS
        return {
            **yacs_arguments(cfg, node, ATSSHead),
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "box_loss_weight": node.BBOX_REG_LOSS_WEIGHT,
            "centerness_loss_weight": node.CENTERNESS_LOSS_WEIGHT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: Sequence[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: Sequence[Instances],
    ) -> dict[str, Tensor]:
        # No class maps: they are read as they lie in memory.
        _, pred_deltas, pred_centerness = self._transpose_dense_predictions(
            [[], *predictions[1:]], [self.num_classes, 4, 1]
        )
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, predictions[0], gt_labels, pred_deltas, gt_boxes, pred_centerness)

    def losses(
        self,
        anchors: Sequence[Boxes],
        pred_logits: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        pred_deltas: Sequence[Tensor],
        gt_boxes: Sequence[Tensor],
        pred_centerness: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """
        Args:
            anchors: per level.
            pred_logits: per level, (N, A*K, H, W), as the head returns them.
            gt_labels, gt_boxes: see :meth:`label_anchors`.
            pred_deltas: per level, (N, H*W*A, 4), what ``box2box_transform`` decodes.
            pred_centerness: per level, (N, H*W*A, 1) logits.

        Returns:
            "loss_cls" (focal loss), "loss_box_reg" (GIoU) and "loss_centerness".
        """
        logits = [x.unflatten(1, (-1, self.num_classes)) for x in pred_logits]
        labels = LevelLabels(gt_labels, logits, self.num_classes)

        one_hot = labels.class_targets(logits, torch.ones_like(labels.classes))
        loss_cls = sum(
            (
                sigmoid_focal_loss_jit(x.float(), y, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma)
                * labelled.unsqueeze(2)
            ).sum()
            for x, y, labelled in zip(logits, one_hot, labels.labelled)
        )

        anchor_boxes = torch.cat([x.tensor for x in anchors])
        anchor_boxes = labels.gather_flat(anchor_boxes.expand(len(gt_boxes), -1, -1))
        targets = labels.gather_flat(torch.stack(list(gt_boxes)))
        centerness = centerness_targets(anchor_boxes, targets)
        deltas = labels.gather_flat(torch.cat(list(pred_deltas), dim=1))
        boxes = self.box2box_transform.apply_deltas(deltas, anchor_boxes)
        loss_box_reg = (iou_loss(boxes, targets) * centerness).sum()
        quality = labels.gather_flat(torch.cat(list(pred_centerness), dim=1)).squeeze(1)
        loss_centerness = F.binary_cross_entropy_with_logits(quality.float(), centerness, reduction="sum")

        self.log_positives(labels)
        counts = torch.stack([labels.per_image.clamp(min=1).sum().to(centerness), centerness.sum()])
        num_samples, centerness_sum = mean_over_ranks(counts).clamp(min=1)
        return {
            "loss_cls": loss_cls / num_samples,
            "loss_box_reg": loss_box_reg * (self.box_loss_weight / centerness_sum),
            "loss_centerness": loss_centerness * (self.centerness_loss_weight / num_samples),
        }
