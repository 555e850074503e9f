"""The student's ordinary training step, watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from d2kd.modeling.adapters import check_lists, get_adapter
from d2kd.modeling.dense_output import Assignment, DenseOutput
from d2kd.modeling.monitors import check_finite
from d2kd.modeling.taps import Taps, record_taps

__all__ = ["StudentRun", "run_student"]


@dataclass
class StudentRun:
    """
    What the student made of one batch: its own losses, and what distillation reads off that step.

    Attributes:
        losses: its detection losses, as ``forward_training`` returns them.
        output: its dense output.
        assignment: the labels of its anchors.
        taps: (branch, index) -> one (N, C, H, W) activation a level.
        gt_instances: the images' annotations, on its device.
        canvas: (H, W) of the padded batch.
    """

    losses: dict[str, Tensor]
    output: DenseOutput
    assignment: Assignment
    taps: Taps
    gt_instances: list[Instances]
    canvas: tuple[int, int]


def run_student(
    detector: DenseDetector, batched_inputs: Sequence[Mapping], *, tap_indices: Mapping[str, set[int]]
) -> StudentRun:
    """
    The four steps of ``DenseDetector.forward`` in training; nothing runs twice.

    Under autocast the head's predictions are cast to fp32 and ``forward_training`` runs outside autocast, since
    Detectron2's FCOS fails inside it.

    Args:
        detector: in training mode.
        batched_inputs: "image" and "instances" of each image.
        tap_indices: for each branch, after how many blocks to record taps.

    Raises:
        ValueError: an image without "instances".
        TypeError: a detector that does not call ``label_anchors`` exactly once, or whose head returns no lists.
        FloatingPointError: box predictions that are not finite on some rank; raised on all ranks.
    """
    for index, item in enumerate(batched_inputs):
        if "instances" not in item:
            raise ValueError(f"Training image {index} of the batch has no 'instances'; its keys: {sorted(item)}.")
    adapter = get_adapter(detector)
    images = detector.preprocess_image(batched_inputs)
    features = detector.backbone(images.tensor)
    features = [features[name] for name in detector.head_in_features]
    with record_taps(adapter.towers(detector.head) if tap_indices else {}, tap_indices, features) as taps:
        predictions = detector.head(features)
    device = detector.device
    check_lists(detector, predictions)
    if torch.is_autocast_enabled(device.type):
        predictions = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, predictions)
    # A NaN in them would fail an assertion inside forward_training, on this rank alone; class maps are left to
    # the losses. What a head returns beyond the lists that its adapter knows may be anything.
    others = [x.detach().float().sum() for x in tree_flatten(predictions[1:])[0] if isinstance(x, Tensor)]
    check_finite({"the student's box predictions": sum(others, detector.pixel_mean.new_zeros(()))})
    gt_instances = [x["instances"].to(device) for x in batched_inputs]
    with torch.autocast(device.type, enabled=False), _watch_assignment(detector) as seen:
        losses = detector.forward_training(images, features, predictions, gt_instances)
    if len(seen) != 1:
        raise TypeError(
            f"{type(detector).__name__}.forward_training called label_anchors {len(seen)} times, expected once: d2kd "
            "takes the assignment from that call."
        )
    anchors, labelled = seen[0]
    output = adapter.dense_output(detector, predictions, anchors)
    output.features = features
    return StudentRun(
        losses=losses,
        output=output,
        assignment=adapter.assignment(detector, labelled, gt_instances, output.sizes),
        taps=taps,
        gt_instances=gt_instances,
        canvas=tuple(images.tensor.shape[-2:]),
    )


@contextmanager
def _watch_assignment(detector: DenseDetector) -> Iterator[list]:
    """Collect (anchors, result) of each ``label_anchors`` call while inside, by shadowing it on the instance."""
    seen: list = []
    shadowed = vars(detector).get("label_anchors")
    label_anchors = detector.label_anchors

    def watched(anchors: Any, gt_instances: Any) -> Any:
        result = label_anchors(anchors, gt_instances)
        seen.append((anchors, result))
        return result

    object.__setattr__(detector, "label_anchors", watched)
    try:
        yield seen
    finally:
        if shadowed is None:
            object.__delattr__(detector, "label_anchors")
        else:
            object.__setattr__(detector, "label_anchors", shadowed)
