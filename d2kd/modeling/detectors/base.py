"""What GFL and ATSS have in common: anchors labelled by an assigner, valid anchors, inference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from d2kd.modeling.detectors.assigner import ATSSAssigner
from d2kd.modeling.detectors.detection_losses import LevelLabels
from d2kd.modeling.detectors.interface import BoxTransform, check_strides, strides_of

__all__ = ["AssignedDetector"]


class AssignedDetector(DenseDetector):
    """
    A dense detector whose anchors are labelled by an assigner such as :class:`ATSSAssigner`.

    Unlike Detectron2's detectors it leaves out, in training, the anchors of cells that lie wholly in padding beyond an
    image's own padded size: see :meth:`valid_anchors`.

    Args:
        backbone, head, head_in_features, pixel_mean, pixel_std: see Detectron2's ``DenseDetector``.
        anchor_generator: makes anchors, the same number for each cell, from a list of features.
        assigner: called with one image's (per-level anchors, objects' boxes, valid=), gives the index of the object
            that each anchor answers for or -1.
        box2box_transform: decodes the box parameters.
        num_classes: K.
        test_score_thresh: a location's class takes part in inference if its score is larger.
        test_topk_candidates: at most so many of them a level, those of the highest scores.
        test_nms_thresh: of boxes of one class with a larger IoU, the one with the highest score is kept.
        max_detections_per_image: at most so many are returned.
        input_format: channel order of the images.

    Raises:
        ValueError: an anchor generator of other strides than the backbone's.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        anchor_generator: nn.Module,
        assigner: ATSSAssigner,
        box2box_transform: BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ) -> None:
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.anchor_generator = anchor_generator
        self.assigner = assigner
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format
        check_strides(self)

    @torch.no_grad()
    def valid_anchors(self, anchors: Sequence[Boxes], gt_instances: Sequence[Instances]) -> Tensor:
        """
        Which anchors take part in training: those of the cells that an image would have if it were padded alone, that
        is row < ceil(h / stride) and column < ceil(w / stride), where (h, w) is the image's own size rounded up to the
        backbone's ``size_divisibility``.

        Args:
            anchors: per level, as the anchor generator makes them.
            gt_instances: of each image; only their ``image_size`` is read.

        Returns:
            (N, R) booleans, R over the levels' anchors in (level, H, W, A) order.
        """
        divisor = max(self.backbone.size_divisibility, 1)
        sizes = [[math.ceil(side / divisor) * divisor for side in x.image_size[::-1]] for x in gt_instances]
        strides = strides_of(self)
        limits = torch.tensor([[[math.ceil(side / s) - 0.5 for side in size] for size in sizes] for s in strides])
        # To the device without waiting for it, all levels at once.
        limits = limits.to(anchors[0].tensor, non_blocking=True)
        valid = []
        for boxes, stride, level_limits in zip(anchors, strides, limits, strict=True):
            centers = boxes.get_centers()
            cells = (centers - centers[:1]) / stride  # (R, 2) column and row, up to rounding
            valid.append((cells < level_limits[:, None]).all(dim=-1))
        return torch.cat(valid, dim=1)

    @torch.no_grad()
    def label_anchors(
        self, anchors: Sequence[Boxes], gt_instances: Sequence[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """
        Args:
            anchors: per level, as the anchor generator makes them.
            gt_instances: "gt_boxes" and "gt_classes" of each image.

        Returns:
            for each image, (R,) labels: a class, K for background, -1 for an anchor that is not valid; and the (R, 4)
            box of the object that each anchor answers for, zeros where it answers for none.
        """
        level_anchors = [boxes.tensor for boxes in anchors]
        labels, matched_boxes = [], []
        for instances, valid in zip(gt_instances, self.valid_anchors(anchors, gt_instances)):
            boxes = instances.gt_boxes.tensor
            matched = self.assigner(level_anchors, boxes, valid=valid)
            # One more entry, which index -1 takes.
            classes = F.pad(instances.gt_classes, (0, 1), value=self.num_classes)
            labels.append(classes[matched].masked_fill(~valid, -1))
            matched_boxes.append(F.pad(boxes, (0, 0, 0, 1))[matched])
        return labels, matched_boxes

    def log_positives(self, labels: LevelLabels) -> None:
        """As Detectron2's detectors do."""
        get_event_storage().put_scalar("num_pos_anchors", labels.per_image.float().mean().item())

    def forward_inference(
        self, images: ImageList, features: Sequence[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Detections of each image in its resized size; the maps in ``predictions`` are left as they are."""
        dims = [self.num_classes, 4, 1][: len(predictions)]
        logits, deltas, *centerness = self._transpose_dense_predictions(predictions, dims)
        anchors = self.anchor_generator(features)
        results = []
        for i, image_size in enumerate(images.image_sizes):
            results.append(
                self.inference_single_image(
                    anchors,
                    [x[i].sigmoid() for x in logits],
                    [x[i] for x in deltas],
                    image_size,
                    quality=[x[i, :, 0].sigmoid() for x in centerness[0]] if centerness else None,
                )
            )
        return results

    def inference_single_image(
        self,
        anchors: Sequence[Boxes],
        scores: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_size: tuple[int, int],
        quality: Sequence[Tensor] | None = None,
    ) -> Instances:
        """
        Select by class score, decode, clip to the image, suppress by score times quality.

        Args:
            anchors: per level.
            scores: per level, (R, K) probabilities.
            deltas: per level, (R, 4), what ``box2box_transform`` decodes.
            image_size: (H, W), unpadded.
            quality: per level, (R,) factors of the scores in suppression and in the result; None: 1.
        """
        levels = []
        for level, boxes in enumerate(anchors):
            level_scores, locations, classes = self._select(scores[level])
            if quality is not None:
                level_scores = level_scores * quality[level][locations]
            decoded = self.box2box_transform.apply_deltas(deltas[level][locations], boxes.tensor[locations])
            levels.append(Instances(image_size, pred_boxes=Boxes(decoded), scores=level_scores, pred_classes=classes))
        found = Instances.cat(levels)
        found.pred_boxes.clip(image_size)
        # Detectron2 makes the boxes fp32, and on a CPU the scores must be of the same type.
        keep = batched_nms(found.pred_boxes.tensor, found.scores.float(), found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]

    def _select(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, K) scores -> the highest above the threshold, with their locations and classes, one entry each."""
        above = scores > self.test_score_thresh
        locations, classes = above.nonzero().unbind(dim=1)
        scores = scores[above]
        count = scores.shape[0]
        if isinstance(count, Tensor):  # while tracing
            count = count.clamp(max=self.test_topk_candidates)
        else:
            count = min(count, self.test_topk_candidates)
        scores, order = scores.topk(count)
        return scores, locations[order], classes[order]
