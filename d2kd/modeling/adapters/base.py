"""What d2kd has to know of a detector family, and the registry of those it knows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from fvcore.common.registry import Registry
from torch import Tensor, nn

from d2kd.modeling.adapters.taps import Block, split_tower
from d2kd.modeling.detectors import DistributionBoxes
from d2kd.modeling.detectors.interface import num_classes_of, reg_max_of
from d2kd.structures import Assignment, DenseOutput, OutputSpec

__all__ = [
    "ADAPTER_REGISTRY",
    "Adapter",
    "check_class",
    "get_adapter",
    "input_format_of",
    "predictors_of",
    "preset_families",
]

ADAPTER_REGISTRY = Registry("ADAPTER")
ADAPTER_REGISTRY.__doc__ = """
Registry for :class:`Adapter` classes: how to read one family of dense detectors. A detector is read by the adapter
of the nearest class of its method resolution order, so subclasses of a known detector need none of their own.
"""


class Adapter(ABC):
    """
    How to read one family of detectors: turn its head into tower blocks + predictors, and its raw predictions
    into a :class:`DenseOutput`. Adapters hold no state.
    """

    #: The class whose instances (and subclasses' instances) this adapter reads.
    detector_class: type[DenseDetector]
    #: Whether the family predicts centerness.
    has_centerness = False
    #: The family whose presets fit, such as "FCOS", if the methods have none for :attr:`detector_class`.
    preset_family = ""

    def towers(self, head: nn.Module) -> dict[str, list[Block]]:
        """
        Blocks of each branch of ``head``: ``{"cls": [...], "box": [...]}``.

        Raises:
            TypeError: the head is built otherwise.
        """
        names = {"cls": "cls_subnet", "box": "bbox_subnet"}
        found = _children_of(head, names.values(), "in which d2kd looks for the tower blocks", "towers() lists them")
        return {branch: split_tower(tower) for branch, tower in zip(names, found)}

    @abstractmethod
    def predict(self, head: nn.Module, level: int, towers_out: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """
        Run the predictors of ``head`` on the outputs of its towers for one level.

        Returns:
            the raw predictions of that level, in the order in which ``head.forward`` returns its lists.
        """

    def describe(self, detector: DenseDetector) -> OutputSpec:
        """What can be said of the detector's dense output before it runs."""
        features = detector.backbone.output_shape()
        return OutputSpec(
            family=self.detector_class.__name__,
            num_classes=num_classes_of(detector),
            bins=detector.bins if isinstance(detector, DistributionBoxes) else None,
            centerness=self.has_centerness,
            feature_channels=features[detector.head_in_features[0]].channels,
            box_coding=_box_coding(getattr(detector, "box2box_transform", None)),
        )

    @abstractmethod
    def dense_output(
        self, detector: DenseDetector, predictions: Sequence[Sequence[Tensor]], anchors: Sequence[Boxes]
    ) -> DenseOutput:
        """
        Args:
            detector: the detector whose head (or whose head's predictors) made ``predictions``.
            predictions: what ``head.forward`` returns: lists of per-level maps, (N, A*C, H, W).
            anchors: what ``detector.anchor_generator`` returns for those maps.
        """

    def valid_anchors(self, labels: Tensor) -> Tensor:
        """(N, R) labels -> booleans: whether an anchor takes part, or lies in padding that the detector leaves out."""
        return torch.ones_like(labels, dtype=torch.bool)

    def assignment(
        self,
        detector: DenseDetector,
        labelled: Sequence[Sequence[Tensor]],
        gt_instances: Sequence[Instances],
        sizes: Sequence[tuple[int, int]],
        *,
        num_labelled: int | None = None,
    ) -> Assignment:
        """
        Args:
            detector: the detector whose ``label_anchors`` was called for ``gt_instances``.
            labelled: what it returned, the labels of each image first.
            gt_instances: the images' objects; none in images without labels.
            sizes: (H, W) of each level.
            num_labelled: how many images have labels, which come first; None: all.
        """
        labels = torch.stack(list(labelled[0]))
        return Assignment.from_flat(
            labels,
            num_classes_of(detector),
            sizes,
            gt_boxes=[x.gt_boxes.tensor for x in gt_instances],
            gt_classes=[x.gt_classes for x in gt_instances],
            valid=self.valid_anchors(labels),
            num_labelled=num_labelled,
            iou_thresholds=_iou_thresholds(getattr(detector, "anchor_matcher", None)),
        )


def _iou_thresholds(matcher: object) -> tuple[float, float] | None:
    """The least and the largest finite one (Detectron2's ``Matcher`` has infinity at both ends); None: it has none."""
    thresholds = getattr(matcher, "thresholds", None)
    numbers = thresholds if isinstance(thresholds, Sequence) else ()
    finite = [float(x) for x in numbers if isinstance(x, (int, float)) and math.isfinite(x)]
    return (min(finite), max(finite)) if finite else None


def predictors_of(head: nn.Module, *names: str) -> list[nn.Module]:
    """
    These children of ``head``.

    Raises:
        TypeError: it lacks one of them.
    """
    return _children_of(head, names, "which d2kd takes for a predictor", "predict() runs them")


def _children_of(head: nn.Module, names: Iterable[str], role: str, remedy: str) -> list[nn.Module]:
    found = {name: getattr(head, name, None) for name in names}
    missing = [name for name, child in found.items() if child is None]
    if missing:
        raise TypeError(
            f"{type(head).__name__} has no {' and no '.join(missing)}, {role}: register an Adapter whose {remedy}, or "
            "choose losses with source='student'."
        )
    return [child for child in found.values() if child is not None]


def _box_coding(transform: object) -> str:
    """Class and settings of a box transform, such as ``Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))``."""
    if transform is None:
        return ""
    settings = ((k, tuple(v) if isinstance(v, Sequence) else v) for k, v in sorted(vars(transform).items()))
    return f"{type(transform).__name__}({', '.join(f'{k}={v}' for k, v in settings if k != 'scale_clamp')})"


def check_class(detector_class: type) -> None:
    """
    Raises:
        TypeError: no adapter reads its instances; the message says why, and where the documentation helps.
    """
    known = ", ".join(sorted(adapter.detector_class.__name__ for _, adapter in ADAPTER_REGISTRY))
    name = f"{detector_class.__module__}.{detector_class.__name__}"
    if issubclass(detector_class, (GeneralizedRCNN, ProposalNetwork)):
        raise TypeError(
            f"{name} is a two-stage detector, and d2kd distils one-stage ones: {known} and their subclasses "
            "(docs/own_detector.md#two-stage-detectors)."
        )
    if not issubclass(detector_class, DenseDetector):
        raise TypeError(
            f"{name} is no DenseDetector of detectron2, expected one that d2kd reads: {known} and their subclasses. "
            "Make it one (docs/own_detector.md#a-plain-module-as-a-densedetector)."
        )
    if not any(issubclass(detector_class, adapter.detector_class) for _, adapter in ADAPTER_REGISTRY):
        raise TypeError(
            f"d2kd has no adapter for {name}; it reads {known} and their subclasses. Register a subclass of "
            "d2kd.modeling.Adapter in d2kd.modeling.ADAPTER_REGISTRY for it "
            "(docs/own_detector.md#a-head-that-d2kd-does-not-know)."
        )


def _nearest(detector_class: type) -> Adapter:
    check_class(detector_class)
    adapters = {adapter.detector_class: adapter for _, adapter in ADAPTER_REGISTRY}
    return next(adapters[cls] for cls in detector_class.__mro__ if cls in adapters)()


def preset_families(detector_class: type) -> list[str]:
    """
    The names under which a method may have a preset for a detector, the nearest first: those of its class and of the
    classes that it derives from, up to the one that an adapter reads, and that adapter's ``preset_family``.

    Raises:
        TypeError: no adapter reads it.
    """
    names = [cls.__name__ for cls in detector_class.__mro__]
    adapter = _nearest(detector_class)
    own = names[: names.index(adapter.detector_class.__name__) + 1]
    return [*own, adapter.preset_family] if adapter.preset_family else own


def input_format_of(detector: nn.Module, override: str | None, field: str) -> str:
    """
    Channel order that ``detector`` expects: ``override``, else its ``input_format`` attribute, else "L" for images of
    one channel and "BGR" for others (Detectron2's default; its FCOS has no such attribute).

    Raises:
        ValueError: it is none of "BGR", "RGB" and "L", not of as many channels as the detector's ``pixel_mean``, or
            ``override`` contradicts the attribute. ``field`` names the config field to change.
    """
    own = getattr(detector, "input_format", None)
    if override is not None and own is not None and override != own:
        raise ValueError(
            f"{field} is {override!r}, but the {type(detector).__name__} itself has input_format={own!r}: remove one."
        )
    channels = len(getattr(detector, "pixel_mean", "BGR"))
    value = override or own or ("L" if channels == 1 else "BGR")
    if value not in ("BGR", "RGB", "L"):
        raise ValueError(f"{field} is {value!r}, expected 'BGR', 'RGB' or 'L'.")
    if (value == "L") != (channels == 1):
        raise ValueError(
            f"{field} is {value!r}, but the {type(detector).__name__}'s pixel_mean has {channels} channels: 'L' is for "
            "one, 'BGR' and 'RGB' for others."
        )
    return value


def get_adapter(detector: DenseDetector) -> Adapter:
    """
    The adapter that reads ``detector``.

    A class that overrides ``DenseDetector.forward`` for inference alone says so by ``trains_in_four_steps = True``
    beside that ``forward``: in training it then must do nothing but ``preprocess_image``, backbone, head and
    ``forward_training``, which d2kd calls itself.

    Raises:
        TypeError: the detector overrides ``DenseDetector.forward`` and does not say so, is no ``DenseDetector``, or
            belongs to no family with an adapter.
    """
    cls = type(detector)
    adapter = _nearest(cls)
    overriding = next(part for part in cls.__mro__ if "forward" in vars(part))
    if overriding is not DenseDetector and vars(overriding).get("trains_in_four_steps") is not True:
        raise TypeError(
            f"{overriding.__module__}.{overriding.__name__} overrides DenseDetector.forward, which d2kd replaces by "
            "its four steps (preprocess_image, backbone, head, forward_training); move what it adds in training into "
            "one of those. If it adds something in inference alone, write trains_in_four_steps = True beside it "
            "(docs/own_detector.md#a-detector-with-its-own-forward)."
        )
    reg_max = reg_max_of(detector.head)
    if reg_max is not None and not isinstance(detector, DistributionBoxes):
        raise TypeError(
            f"{cls.__name__} reads four numbers a box, but its head predicts distributions (reg_max "
            f"{reg_max}): use Distribution{adapter.detector_class.__name__} of d2kd.modeling.detectors."
        )
    return adapter
