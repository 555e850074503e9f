"""The student's ordinary training step, and what distillation reads off it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor
from torch.utils._pytree import tree_map_only

from d2kd.modeling.adapters import Taps, check_lists, get_adapter, record_taps, tap_indices
from d2kd.modeling.detectors import ATSS, GFL
from d2kd.modeling.detectors.interface import label_anchors_of, make_anchors, pixel_statistics, strides_of
from d2kd.modeling.distillation.monitors import warn_of_unlabelled
from d2kd.modeling.distillation.overlap import Overlap
from d2kd.structures import Assignment, DenseOutput

__all__ = [
    "Prediction",
    "StudentStep",
    "asserts_boxes",
    "blank_share",
    "images_of_use",
    "labels_of",
    "predict",
    "train_student",
]

#: Losses without an assertion on boxes, which fvcore's IoU losses have: RetinaNet's may be one of these.
_WITHOUT_ASSERTIONS = (RetinaNet.losses, GFL.losses, ATSS.losses)


@dataclass
class Prediction:
    """
    What the student's head made of one batch.

    Attributes:
        predictions: as ``head.forward`` returns them, in fp32 under autocast.
        anchors: those of its levels.
        output: the same as a dense output, with the maps that the head was given.
        taps: (branch, index) -> one (N, C, H, W) activation a level.
    """

    predictions: Sequence[Sequence[Tensor]]
    anchors: list[Boxes]
    output: DenseOutput
    taps: Taps

    @property
    def is_finite(self) -> Tensor:
        """
        Whether the boxes are: if not, they fail an assertion in ``forward_training`` of a detector that
        :func:`asserts_boxes`. Class maps are left to the losses.
        """
        boxes = [*self.output.box_params, *(self.output.centerness or ())]
        return torch.isfinite(reduce(add, (x.detach().float().sum() for x in boxes)))


@dataclass
class StudentStep:
    """
    What the student made of one batch: its own losses, and what distillation reads off that step.

    Attributes:
        losses: its detection losses, as ``forward_training`` returns them.
        output: its dense output.
        assignment: the labels of its anchors.
        taps: (branch, index) -> one (N, C, H, W) activation a level.
        gt_instances: the images' annotations, on its device; none in images without labels.
        common_objects: of each image, indices of those whose class the teacher has as well; None: all.
    """

    losses: dict[str, Tensor]
    output: DenseOutput
    assignment: Assignment
    taps: Taps
    gt_instances: list[Instances]
    common_objects: list[Tensor] | None = None

    def restrict(self, overlap: Overlap) -> StudentStep:
        """The same with output, assignment and taps on the levels and classes that the teacher has as well."""
        output = self.output.select(overlap.student_levels)
        assignment = self.assignment.select(overlap.student_levels, output.sizes)
        return replace(
            self,
            output=output.with_classes(overlap.student_classes),
            assignment=assignment.with_classes(overlap.student_classes, self.common_objects),
            taps={key: [maps[level] for level in overlap.student_levels] for key, maps in self.taps.items()},
        )


def asserts_boxes(detector: DenseDetector) -> bool:
    """Whether ``forward_training`` may fail an assertion where boxes are not finite, instead of making such losses."""
    known = getattr(type(detector), "losses", None) in _WITHOUT_ASSERTIONS
    return not known or getattr(detector, "box_reg_loss_type", "smooth_l1") != "smooth_l1"


def images_of_use(batched_inputs: Sequence[dict[str, Any]], takers: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """
    The images of a batch that have labels, then those that have none, if there is a loss that they train.

    Args:
        batched_inputs: the batch; an image without "instances", or with a true "unlabeled", has no labels.
        takers: names of the losses that need no labels.

    Returns:
        the images, at least one if the batch has any, and how many of them have labels.
    """
    labelled: list[dict[str, Any]] = []
    unlabelled: list[dict[str, Any]] = []
    for item in batched_inputs:
        (unlabelled if item.get("unlabeled", False) or "instances" not in item else labelled).append(item)
    if unlabelled:
        warn_of_unlabelled(len(labelled), len(batched_inputs), takers)
    return labelled + unlabelled if takers else labelled or unlabelled[:1], len(labelled)


def blank_share(detector: DenseDetector) -> list[dict[str, Any]]:
    """
    One black image without labels, of two cells by two on the coarsest level: what a rank without images runs, to take
    part in all that the ranks do together, and to name its losses. Batch norm that is trained sees it, and the class
    losses of GFL and ATSS count it as an image without objects, which is one positive.

    Raises:
        ValueError: there is one rank, so that nothing would be trained.
    """
    if comm.get_world_size() == 1:
        raise ValueError(
            "This batch has no images, expected at least one: look at the data loader (dataloader.train) and at what "
            "filters its samples."
        )
    side = 2 * max(strides_of(detector))
    return [{"image": torch.zeros(len(pixel_statistics(detector)[0]), side, side), "unlabeled": True}]


def labels_of(
    detector: DenseDetector, images: ImageList, labelled: Sequence[Mapping[str, Any]], overlap: Overlap | None
) -> tuple[list[Instances], list[Tensor] | None]:
    """
    The annotations of a batch on the detector's device: of the first images those of ``labelled``, of the rest none.

    Returns:
        these, and the :meth:`Overlap.common_objects` among them; None: all.
    """
    device = detector.device
    gt_instances = [item["instances"].to(device) for item in labelled]
    gt_instances += [_no_objects(size, device) for size in images.image_sizes[len(labelled) :]]
    if overlap is None:
        return gt_instances, None
    on_the_host = [item["instances"].gt_classes for item in labelled]
    none = [torch.zeros(0, dtype=torch.int64)] * (len(gt_instances) - len(labelled))
    return gt_instances, overlap.common_objects(on_the_host + none, device)


def predict(detector: DenseDetector, images: ImageList, tails: Collection[int] = ()) -> Prediction:
    """
    The student's backbone and head, as ``DenseDetector.forward`` runs them. Under autocast the predictions are cast to
    fp32, since Detectron2's FCOS makes losses of nothing else.

    Args:
        detector: in training mode.
        images: the batch, as its ``preprocess_image`` returns it.
        tails: for each of these numbers, the taps before that many last blocks of each branch are recorded.

    Raises:
        TypeError: its head returns no lists.
    """
    adapter = get_adapter(detector)
    maps = detector.backbone(images.tensor)
    features = [maps[name] for name in detector.head_in_features]
    with record_taps(adapter.towers(detector.head) if tails else {}, tap_indices(detector, tails), features) as taps:
        predictions = detector.head(features)
    check_lists(detector, predictions)
    if torch.is_autocast_enabled(detector.device.type):
        predictions = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, predictions)
    anchors = make_anchors(detector, features)
    output = adapter.dense_output(detector, predictions, anchors)
    output.features = features
    return Prediction(predictions, anchors, output, taps)


def train_student(
    detector: DenseDetector,
    images: ImageList,
    prediction: Prediction,
    gt_instances: list[Instances],
    common_objects: list[Tensor] | None,
    *,
    num_labelled: int,
    overlap: Overlap | None = None,
) -> StudentStep:
    """
    The rest of what ``DenseDetector.forward`` does in training: ``forward_training``, outside autocast.

    It is given the images with labels alone. Without any, it is given one, without objects, for the losses' names, and
    they are 0.

    Args:
        detector: in training mode.
        images: the batch, as its ``preprocess_image`` returns it.
        prediction: what :func:`predict` made of it.
        gt_instances, common_objects: what :func:`labels_of` made of it.
        num_labelled: how many images have labels, which come first.
        overlap: the levels and classes to read; None: all of the student's.

    Raises:
        TypeError: a detector that does not call ``label_anchors`` exactly once.
    """
    given = max(num_labelled, 1)
    keeping = nullcontext() if num_labelled else _kept_normalizer(detector)
    features, output = prediction.output.features or [], prediction.output
    first = _first(given, images, features, prediction.predictions)
    with torch.autocast(detector.device.type, enabled=False), _watch_assignment(detector) as seen, keeping:
        losses = detector.forward_training(*first, gt_instances[:given])
    if not num_labelled:
        losses = {name: value * 0 for name, value in losses.items()}
    if len(seen) != 1:
        raise TypeError(
            f"{type(detector).__name__}.forward_training called label_anchors {len(seen)} times, expected once: d2kd "
            "takes the assignment from that call."
        )
    (found,) = seen
    if given < len(gt_instances):
        more = label_anchors_of(detector)(prediction.anchors, gt_instances[given:])
        found = [[*some, *rest] for some, rest in zip(found, more)]
    assignment = get_adapter(detector).assignment(
        detector, found, gt_instances, output.sizes, num_labelled=num_labelled
    )
    step = StudentStep(losses, output, assignment, prediction.taps, gt_instances, common_objects)
    return step if overlap is None else step.restrict(overlap)


def _no_objects(size: tuple[int, int], device: torch.device) -> Instances:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Instances(size, gt_boxes=Boxes(torch.zeros(0, 4, device=device)), gt_classes=none)


def _first(
    count: int, images: ImageList, features: Sequence[Tensor], predictions: Sequence[Sequence[Tensor]]
) -> tuple[ImageList, Sequence[Tensor], Sequence[Sequence[Tensor]]]:
    """The first ``count`` images of a batch, as views."""
    if count == len(images):
        return images, features, predictions
    total = len(images)
    images = ImageList(images.tensor[:count], images.image_sizes[:count])
    # Beyond its lists of maps a head may return anything.
    predictions = tree_map_only(Tensor, lambda x: x[:count] if x.dim() and len(x) == total else x, predictions)
    return images, [x[:count] for x in features], predictions


@contextmanager
def _kept_normalizer(detector: DenseDetector) -> Iterator[None]:
    """Put the detector's running normaliser back on leaving."""
    before = vars(detector).get("loss_normalizer")
    try:
        yield
    finally:
        if before is None:  # the first step: Detectron2 makes it then
            vars(detector).pop("loss_normalizer", None)
        else:
            vars(detector)["loss_normalizer"] = before


@contextmanager
def _watch_assignment(detector: DenseDetector) -> Iterator[list[Sequence[Sequence[Tensor]]]]:
    """Collect the result of each ``label_anchors`` call while inside, by shadowing it on the instance."""
    seen: list[Sequence[Sequence[Tensor]]] = []
    shadowed = vars(detector).get("label_anchors")
    label_anchors = label_anchors_of(detector)

    def watched(anchors: Sequence[Boxes], gt_instances: Sequence[Instances]) -> Sequence[Sequence[Tensor]]:
        result = label_anchors(anchors, gt_instances)
        seen.append(result)
        return result

    object.__setattr__(detector, "label_anchors", watched)
    try:
        yield seen
    finally:
        if shadowed is None:
            object.__delattr__(detector, "label_anchors")
        else:
            object.__setattr__(detector, "label_anchors", shadowed)
