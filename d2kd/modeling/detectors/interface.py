"""What d2kd reads off any dense detector, beside what Detectron2's ``DenseDetector`` declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

__all__ = [
    "BoxTransform",
    "box_transform_of",
    "check_detector",
    "check_level",
    "check_strides",
    "inference_of",
    "label_anchors_of",
    "make_anchors",
    "make_statistics_float",
    "num_classes_of",
    "pixel_statistics",
    "reg_max_of",
    "strides_of",
]


@runtime_checkable
class BoxTransform(Protocol):
    """What decodes box parameters, such as Detectron2's ``Box2BoxTransform``."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(R, 4) parameters and (R, 4) anchors -> (R, 4) boxes, absolute xyxy."""


def num_classes_of(detector: DenseDetector) -> int:
    """
    Raises:
        TypeError: ``detector.num_classes`` is no whole number.
    """
    value = getattr(detector, "num_classes", None)
    if not isinstance(value, int):
        raise TypeError(f"{type(detector).__name__}.num_classes is {value!r}, expected the number of classes.")
    return value


def strides_of(detector: DenseDetector) -> list[int]:
    """The stride of each level that the detector's head is given."""
    shapes = detector.backbone.output_shape()
    return [shapes[name].stride for name in detector.head_in_features]


def check_strides(detector: DenseDetector) -> None:
    """
    Raises:
        ValueError: the anchor generator's strides, which distances and cells are counted in, are not the features'.
    """
    expected = strides_of(detector)
    found = list(getattr(detector.anchor_generator, "strides", ()))
    if found != expected:
        raise ValueError(
            f"{type(detector).__name__}'s anchor_generator.strides are {found}, but its features "
            f"{', '.join(detector.head_in_features)} have strides {expected}: make them equal."
        )


def check_detector(detector: DenseDetector, key: str) -> None:
    """
    Check what fails, in a detector's own step, in an assertion or in losses that are not finite.

    Args:
        key: where its arguments are in the config.

    Raises:
        ValueError: a standard deviation of pixels that is not above 0, or a head made for another number of levels than
            it is given.
    """
    std = pixel_statistics(detector)[1].flatten()
    if not std.is_meta and not bool(((std > 0) & std.isfinite()).all()):
        raise ValueError(f"{key}.pixel_std is {std.tolist()}, expected numbers > 0, by which pixels are divided.")
    scales = getattr(detector.head, "scales", None)
    # Detectron2's FCOSHead keeps the number nowhere else.
    levels = len(scales) if isinstance(scales, nn.ModuleList) else getattr(detector.head, "_num_features", None)
    if levels is not None and levels != len(detector.head_in_features):
        raise ValueError(
            f"{key}.head is made for {levels} levels (its input_shape), but {key}.head_in_features are "
            f"{', '.join(detector.head_in_features)}: give it as many."
        )


def make_statistics_float(detector: DenseDetector) -> None:
    """Pixel statistics that were given as integers (``pixel_mean=[0, 0, 0]``), which no dtype of weights follows."""
    for name in ("pixel_mean", "pixel_std"):
        values = detector.get_buffer(name)
        if not values.is_floating_point():
            setattr(detector, name, values.float())


def pixel_statistics(detector: DenseDetector) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of its images, each (C, 1, 1)."""
    return detector.get_buffer("pixel_mean"), detector.get_buffer("pixel_std")


def check_level(found: object, who: str) -> tuple[Tensor, ...]:
    """
    Args:
        found: what a ``predict`` of one level returned.
        who: the class that it belongs to.

    Raises:
        TypeError: it is no tuple of maps.
    """
    if isinstance(found, (tuple, list)) and all(isinstance(x, Tensor) for x in found):
        return tuple(found)
    kinds = ", ".join(type(x).__name__ for x in found) if isinstance(found, (tuple, list)) else type(found).__name__
    raise TypeError(
        f"{who}.predict() returned {'None' if found is None else kinds}, expected the maps of one level, a tuple in "
        f"the order in which the head's forward returns its lists: end {who}.predict() with a return of them."
    )


def reg_max_of(head: nn.Module) -> int | None:
    """n of a head that predicts a distribution of n + 1 bins for each side of a box; None: four numbers a box."""
    return getattr(head, "reg_max", None)


def box_transform_of(detector: DenseDetector) -> BoxTransform:
    """
    Raises:
        TypeError: ``detector.box2box_transform`` has no ``apply_deltas``.
    """
    transform = getattr(detector, "box2box_transform", None)
    if not isinstance(transform, BoxTransform):
        raise TypeError(
            f"{type(detector).__name__}.box2box_transform is {transform!r}, expected a box transform such as "
            "Detectron2's Box2BoxTransform."
        )
    return transform


def make_anchors(detector: DenseDetector, features: Sequence[Tensor]) -> list[Boxes]:
    """Per level, the anchors of maps of these sizes, in (H, W, A) order."""
    generator = _callable(detector, "anchor_generator", "anchor_generator, which makes the anchors of its levels")
    with features[0].device:  # Detectron2's makes its grids on the default device and copies them, two a level
        return generator(features)


def label_anchors_of(
    detector: DenseDetector,
) -> Callable[[Sequence[Boxes], Sequence[Instances]], Sequence[Sequence[Tensor]]]:
    """
    The detector's ``label_anchors``, which takes the anchors of each level and the objects of each image. It returns
    the (R,) labels of each image first, then the boxes of the objects that anchors answer for.

    Raises:
        TypeError: it has none.
    """
    what = (
        "label_anchors(anchors, gt_instances), from whose call in forward_training d2kd takes the labels of a step: "
        "move its labelling there"
    )
    return _callable(detector, "label_anchors", what)


def inference_of(detector: DenseDetector) -> Callable[..., list[Instances]]:
    """
    The detector's ``forward_inference``, which turns (images, features, predictions) into the detections of each image;
    it may change predictions in place.

    Raises:
        TypeError: it has none.
    """
    what = "forward_inference(images, features, predictions), which turns its predictions into detections"
    return _callable(detector, "forward_inference", what)


def _callable(detector: DenseDetector, name: str, what: str) -> Callable[..., Any]:
    found = getattr(detector, name, None)
    if not callable(found):
        raise TypeError(f"{type(detector).__name__} has no {what}.")
    return found
