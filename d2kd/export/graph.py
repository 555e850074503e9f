"""A student as a function of tensors alone, which torch can trace, export and write as ONNX."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from d2kd.export.weights import ExportError
from d2kd.modeling.detectors import AssignedDetector, DistributionBoxes, expected_distances
from d2kd.modeling.detectors.interface import box_transform_of, num_classes_of, pixel_statistics, strides_of

__all__ = ["DETECTIONS", "LOCATIONS", "DetectionGraph", "instances_of"]

#: What :class:`DetectionGraph` returns, in this order.
DETECTIONS = ("boxes", "scores", "classes", "counts")
LOCATIONS = ("boxes", "scores")

#: Score of a place that holds no detection.
_NONE = -1.0


class DetectionGraph(nn.Module):
    """
    The inference of RetinaNet, FCOS, GFL and ATSS (with four numbers a box or with distributions) on a batch of images
    of one size: normalisation, padding, network, decoding, selection, NMS.

    Shapes depend on the input's alone, never on what is detected: an image has ``max_detections_per_image`` places,
    the best detection first, and places beyond its count are empty (box 0, score 0, class -1).

    Args:
        detector: in eval mode.
        locations: return the box and the scores of every location instead, without threshold and NMS.

    Raises:
        ExportError: a detector of another family.
    """

    def __init__(self, detector: DenseDetector, *, locations: bool = False) -> None:
        super().__init__()
        if not isinstance(detector, (RetinaNet, FCOS, AssignedDetector)):
            raise ExportError(
                f"{type(detector).__name__} can be exported as weights only: the other formats are of RetinaNet, FCOS, "
                "GFL, ATSS and classes derived from them."
            )
        self.detector = detector
        self.locations = locations

    @property
    def outputs(self) -> tuple[str, ...]:
        return LOCATIONS if self.locations else DETECTIONS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, C, H, W) float32 values of 0 to 255 in the detector's channel order.

        Returns:
            :data:`DETECTIONS`: (N, D, 4) absolute x1, y1, x2, y2 within the image, (N, D) float32, (N, D) int64,
            (N,) int64. Or :data:`LOCATIONS`: (N, R, 4), not clipped to the image, and (N, R, K), over the levels in
            (H, W, A) order; ATSS's scores are those of the class times centerness.
        """
        height, width = images.shape[-2:]
        predictions, anchors = self._predict(images)
        levels = [
            self._read(level, maps, boxes.tensor) for level, (maps, boxes) in enumerate(zip(zip(*predictions), anchors))
        ]
        if self.locations:
            return tuple(torch.cat(x, dim=1) for x in zip(*(level.everything() for level in levels)))
        boxes, scores, classes = (torch.cat(x, dim=1) for x in zip(*self._best(levels)))
        if isinstance(self.detector, AssignedDetector):
            boxes = _clip(boxes, height, width)
        scores = torch.where(self._survivors(boxes, scores, classes), scores, _NONE)
        places = min(self.detector.max_detections_per_image, scores.shape[1])
        scores, (boxes, classes) = _take_best(places, scores, boxes, classes)
        boxes = _clip(boxes, height, width)
        # As Detectron2 does it: an empty box takes a place first.
        scores = torch.where((boxes[..., 2:] > boxes[..., :2]).all(dim=-1), scores, _NONE)
        scores, (boxes, classes) = _take_best(places, scores, boxes, classes)
        found = scores >= 0
        boxes = torch.where(found[..., None], boxes, torch.zeros_like(boxes))
        classes = torch.where(found, classes, -torch.ones_like(classes))
        return boxes, scores.clamp(min=0), classes, found.sum(dim=1)

    def _predict(self, images: Tensor) -> tuple[Sequence[Sequence[Tensor]], Sequence[Boxes]]:
        detector = self.detector
        mean, std = pixel_statistics(detector)
        height, width = images.shape[-2:]
        constraints = detector.backbone.padding_constraints
        square = constraints.get("square_size", 0)
        # The misspelt key is that of Detectron2's SimpleFeaturePyramid.
        keys = ("size_divisibility", "size_divisiblity")
        divisor = next((constraints[key] for key in keys if key in constraints), detector.backbone.size_divisibility)
        divisor = max(divisor, 1)
        # No negative number is divided: ONNX would round it up.
        bottom, right = (((square or side) + divisor - 1) // divisor * divisor - side for side in (height, width))
        features = detector.backbone(F.pad((images - mean) / std, (0, right, 0, bottom)))
        features = [features[name] for name in detector.head_in_features]
        return detector.head(features), detector.anchor_generator(features)

    def _read(self, level: int, maps: Sequence[Tensor], anchors: Tensor) -> _Level:
        detector = self.detector
        bins = detector.bins if isinstance(detector, DistributionBoxes) else None
        scores = permute_to_N_HWA_K(maps[0], num_classes_of(detector)).float().sigmoid()
        quality = permute_to_N_HWA_K(maps[2], 1).float().sigmoid() if len(maps) > 2 else None
        if quality is not None and isinstance(detector, FCOS):
            scores, quality = (scores * quality).sqrt(), None
        return _Level(detector, level, scores, permute_to_N_HWA_K(maps[1], 4 * (bins or 1)).float(), quality, anchors)

    def _best(self, levels: Sequence[_Level]) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [x.best(self.detector.test_topk_candidates, self.detector.test_score_thresh) for x in levels]

    def _survivors(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """
        (N, M) booleans: which candidates NMS keeps, each image and class for itself.

        One call for all of them: each image and class is moved to a cell of its own in a grid. Near a square, the grid
        keeps coordinates small, so that rounding changes overlaps less than torchvision's row of classes.
        """
        candidates = (scores >= 0).flatten().nonzero().squeeze(1)
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
        groups = (images * num_classes_of(self.detector) + classes).flatten()[candidates]
        boxes = boxes.reshape(-1, 4)[candidates]
        bounds = F.pad(boxes, (0, 0, 0, 1))  # one box at least, for an image without candidates
        cell = bounds.max() - bounds.min() + 1
        side = (F.pad(groups, (0, 1)).max() + 1).float().sqrt().ceil().long()
        corners = torch.stack([groups % side, torch.div(groups, side, rounding_mode="floor")], dim=1).float() * cell
        kept = nms(boxes + corners.repeat(1, 2), scores.flatten()[candidates], self.detector.test_nms_thresh)
        return torch.zeros_like(scores).flatten().index_fill(0, candidates[kept], 1.0).view(scores.shape) > 0


class _Level:
    """
    Locations of a level.

    Args:
        scores: (N, R, K) by which they are selected.
        params: (N, R, 4) or, of distributions, (N, R, 4*(n+1)).
        quality: (N, R, 1) factors of the scores after selection.
        anchors: (R, 4).
    """

    def __init__(
        self,
        detector: DenseDetector,
        level: int,
        scores: Tensor,
        params: Tensor,
        quality: Tensor | None,
        anchors: Tensor,
    ) -> None:
        self._detector, self._level = detector, level
        self._scores, self._params, self._quality, self._anchors = scores, params, quality, anchors

    def everything(self) -> tuple[Tensor, Tensor]:
        """Boxes (N, R, 4) and scores (N, R, K)."""
        anchors = self._anchors.expand(self._scores.shape[0], -1, -1)
        scores = self._scores if self._quality is None else self._scores * self._quality
        return self._decode(self._params, anchors), scores

    def best(self, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, M, 4), scores (N, M), those below the threshold -1, and classes (N, M) of the M best locations."""
        # A small level has fewer than M: with M more there are always as many, and M is no function of the size.
        scores, order = F.pad(self._scores.flatten(1), (0, count), value=_NONE).topk(count, dim=1)
        above = scores > threshold
        order = torch.where(above, order, torch.zeros_like(order))
        num_classes = self._scores.shape[2]
        locations = torch.div(order, num_classes, rounding_mode="floor")
        if self._quality is not None:
            scores = scores * self._quality.squeeze(2).gather(1, locations)
        params = self._params.gather(1, locations[..., None].expand(-1, -1, self._params.shape[2]))
        boxes = self._decode(params, self._anchors[locations])
        return boxes, torch.where(above, scores, _NONE), order % num_classes

    def _decode(self, params: Tensor, anchors: Tensor) -> Tensor:
        """(N, M, C) parameters and (N, M, 4) anchors -> (N, M, 4) boxes."""
        if isinstance(self._detector, DistributionBoxes):
            bins = params.view(params.shape[0], -1, 4, self._detector.bins)
            params = expected_distances(bins) * strides_of(self._detector)[self._level]
        boxes = box_transform_of(self._detector).apply_deltas(params.reshape(-1, 4), anchors.reshape(-1, 4))
        return boxes.view(params.shape[0], -1, 4)


def _clip(boxes: Tensor, height: int, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    x1, x2 = (x.clamp(min=0, max=width) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0, max=height) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def _take_best(count: int, scores: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    scores, order = scores.topk(count, dim=1)
    return scores, (boxes.gather(1, order[..., None].expand(-1, -1, 4)), classes.gather(1, order))


def instances_of(outputs: Sequence[Tensor], index: int, size: tuple[int, int]) -> Instances:
    """What :data:`DETECTIONS` say of one image of a batch; (H, W) is its size."""
    boxes, scores, classes, counts = outputs
    count = int(counts[index])
    return Instances(
        size, pred_boxes=Boxes(boxes[index, :count]), scores=scores[index, :count], pred_classes=classes[index, :count]
    )
