"""Generalized Focal Loss: class scores that are box qualities, and a distribution for each side of a box."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from d2kd.losses.binary_classification import gap_weighted_bce
from d2kd.losses.iou_localization import iou_loss
from d2kd.modeling.detectors.base import AssignedDetector
from d2kd.modeling.detectors.config import yacs_arguments
from d2kd.modeling.detectors.detection_losses import LevelLabels, distribution_focal_loss, mean_over_ranks
from d2kd.modeling.detectors.distribution import DistributionBoxes, expected_distances
from d2kd.modeling.detectors.head import DenseHead, Norm
from d2kd.modeling.detectors.interface import strides_of
from d2kd.structures import iou

__all__ = ["GFL", "GFLHead"]


class GFLHead(DenseHead):
    """GFL's head: :class:`DenseHead` with distributions, a learned scale for each level, and group norm."""

    def __init__(self, *, norm: Norm = "GN", reg_max: int = 16, scale_levels: bool = True, **kwargs: Any) -> None:
        super().__init__(norm=norm, reg_max=reg_max, scale_levels=scale_levels, **kwargs)


@META_ARCH_REGISTRY.register()
class GFL(DistributionBoxes, AssignedDetector):
    """
    "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection" (NeurIPS
    2020), as in the code that LD and BCKD start from.

    Its class scores are trained to be the IoU of the predicted box (quality focal loss); its box losses, on positive
    locations, are weighted by the location's highest class score, detached. Both normalisers are means over ranks:
    positives (at least one an image) for the classes, the sum of those weights (at least 1) for boxes.

    Args:
        head: predicts distributions: :class:`GFLHead`, or :class:`DenseHead` with ``reg_max``.
        qfl_beta: exponent of the quality focal loss.
        box_loss_weight: of the GIoU loss.
        dfl_loss_weight: of the distribution focal loss.
        score_weight_offset: added to the weights of the box losses; 2e-4 in BCKD's code.
        min_score_sum: the sum of these weights that box losses are divided by is at least this; BCKD's and LD's code
            have no floor (1e-6).
        kwargs: see :class:`AssignedDetector`, without ``box2box_transform``. The paper has one square anchor a cell,
            8 strides wide: ``DefaultAnchorGenerator(sizes=[[64], [128], ...], aspect_ratios=[1.0], offset=0.0)``.

    Raises:
        ValueError: a head that predicts no distributions.
    """

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        qfl_beta: float = 2.0,
        box_loss_weight: float = 2.0,
        dfl_loss_weight: float = 0.25,
        score_weight_offset: float = 0.0,
        min_score_sum: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**self.distribution_arguments(head, kwargs))
        self.qfl_beta = qfl_beta
        self.box_loss_weight = box_loss_weight
        self.dfl_loss_weight = dfl_loss_weight
        self.score_weight_offset = score_weight_offset
        self.min_score_sum = min_score_sum

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.GFL
        return {
            **yacs_arguments(cfg, node, partial(GFLHead, reg_max=node.REG_MAX)),
            "qfl_beta": node.QFL_BETA,
            "box_loss_weight": node.BBOX_REG_LOSS_WEIGHT,
            "dfl_loss_weight": node.DFL_LOSS_WEIGHT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: Sequence[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: Sequence[Instances],
    ) -> dict[str, Tensor]:
        pred_logits, pred_distributions = predictions
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, pred_logits, gt_labels, pred_distributions, gt_boxes)

    def losses(
        self,
        anchors: Sequence[Boxes],
        pred_logits: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        pred_distributions: Sequence[Tensor],
        gt_boxes: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """
        Args:
            anchors: per level.
            pred_logits: per level, (N, A*K, H, W), as the head returns them.
            gt_labels, gt_boxes: see :meth:`label_anchors`.
            pred_distributions: per level, (N, A*4*(n+1), H, W), as the head returns them.

        Returns:
            "loss_cls" (quality focal loss), "loss_box_reg" (GIoU) and "loss_dfl".
        """
        logits = [x.unflatten(1, (-1, self.num_classes)) for x in pred_logits]
        labels = LevelLabels(gt_labels, logits, self.num_classes)

        # Boxes: at positives only, in units of their level's stride.
        per_level = [torch.full_like(x.tensor[:, :1], stride) for x, stride in zip(anchors, strides_of(self))]
        strides = torch.cat(per_level).expand(len(gt_boxes), -1, -1)
        centers = torch.cat([x.get_centers() for x in anchors]).expand(len(gt_boxes), -1, -1)
        centers = labels.gather_flat(centers / strides)
        targets = labels.gather_flat(torch.stack(list(gt_boxes)) / strides)
        bins = labels.gather(self.split_bins(pred_distributions))  # (P, 4, n + 1)
        distances = expected_distances(bins)
        boxes = torch.cat([centers - distances[:, :2], centers + distances[:, 2:]], dim=1)
        target_distances = torch.cat([centers - targets[:, :2], targets[:, 2:] - centers], dim=1)
        scores = labels.gather([x.detach() for x in logits]).float().amax(dim=1).sigmoid()
        scores = scores + self.score_weight_offset
        loss_box_reg = (iou_loss(boxes, targets) * scores).sum()
        loss_dfl = (distribution_focal_loss(bins, target_distances).mean(dim=1) * scores).sum()

        qualities = labels.class_targets(logits, iou(boxes.detach(), targets))
        loss_cls = sum(
            gap_weighted_bce(x, y, beta=self.qfl_beta, weight=labelled, dim=2, reduction="sum")
            for x, y, labelled in zip(logits, qualities, labels.labelled)
        )

        self.log_positives(labels)
        counts = torch.stack([labels.per_image.clamp(min=1).sum().to(scores), scores.sum()])
        num_samples, score_sum = mean_over_ranks(counts).unbind()
        num_samples, score_sum = num_samples.clamp(min=1), score_sum.clamp(min=self.min_score_sum)
        return {
            "loss_cls": loss_cls / num_samples,
            "loss_box_reg": loss_box_reg * (self.box_loss_weight / score_sum),
            "loss_dfl": loss_dfl * (self.dfl_loss_weight / score_sum),
        }
