"""The self-check: whether what an adapter says of a detector is what the detector does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torch.utils._pytree import tree_map_only

from d2kd.modeling.adapters.base import get_adapter
from d2kd.modeling.adapters.probe import IMAGES, AdapterCheck, cross, make_features, undisturbed
from d2kd.modeling.adapters.taps import Taps, record_taps, tap_channels
from d2kd.modeling.detectors.interface import inference_of, label_anchors_of, make_anchors, pixel_statistics, strides_of
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["AdapterReport", "check_adapter"]

#: Logits of the probe: one location surely an object of one class, all others surely none.
_HOT, _COLD = 20.0, -20.0


@dataclass(frozen=True, repr=False)
class AdapterReport:
    """
    What :func:`check_adapter` found; ``print`` it.

    Attributes:
        detector, adapter: names of their classes.
        spec: what is known of the detector's dense output before it runs.
        anchors: anchors of a cell, of each level.
        strides: of each level.
        channels: for each branch of the head, the channels of its input and after each of its blocks.
        max_tail: crossed losses may have ``tail=0`` to this.
    """

    detector: str
    adapter: str
    spec: OutputSpec
    anchors: Sequence[int]
    strides: Sequence[int]
    channels: Mapping[str, Sequence[int]]
    max_tail: int

    def __str__(self) -> str:
        spec = self.spec
        anchors = ", ".join(map(str, sorted(set(self.anchors))))
        boxes = f"distributions of {spec.bins} bins" if spec.bins else "four numbers a box"
        rows = {
            "family": f"{spec.family}, read by {self.adapter}",
            "classes": str(spec.num_classes),
            "anchors": f"{anchors} a cell, levels of strides {', '.join(map(str, self.strides))}",
            **{
                f"branch {branch}": f"{len(channels) - 1} blocks, channels {' > '.join(map(str, channels))}"
                for branch, channels in self.channels.items()
            },
            "direct": f"class scores, {boxes}{', centerness' if spec.centerness else ''}",
            "crossed": f"tail=0 to {self.max_tail}",
            "features": f"{spec.feature_channels} channels",
        }
        return "\n".join([f"{self.detector}: its adapter fits", *(f"  {k:<11} {text}" for k, text in rows.items())])

    __repr__ = __str__


def check_adapter(detector: DenseDetector) -> AdapterReport:
    """
    Check that d2kd reads a detector rightly, as student or as teacher, before a run is spent on it.

    Its head and its inference run on made-up maps, its backbone does not. Three things must hold: its dense output has
    the shapes that losses expect, and the class and box that it gives a location are those that the detector's own
    ``forward_inference`` reports of it; its labels have the places of that output; its taps, sent through the rest of
    its own head, give its own predictions, from the head's input to after the last block.

    The detector, in any mode and on any device, is left as it was: modes, buffers, counters of ``CycleBatchNormList``,
    hooks and the random state.

    Args:
        detector: a built detector; of a :class:`DistilledDetector`, ``d2kd.student(model)``.

    Returns:
        what it is and can do, to be printed.

    Raises:
        TypeError: d2kd cannot read it; the message names the method of :class:`Adapter` to write.
        ValueError: the adapter reads something that the detector does not do; the message names the method to write.
    """
    adapter = get_adapter(detector)
    check = AdapterCheck(detector, adapter)
    with undisturbed(detector):
        features = make_features(detector)
        predictions = detector.head(features)
        output, spec = _check_dense_output(check, features, predictions)
        _check_inference(check, features, predictions)
        _check_assignment(check, features, output)
        with check.using("towers", "lists the blocks that its head calls"):
            towers = adapter.towers(detector.head)
            every = {branch: set(range(len(blocks) + 1)) for branch, blocks in towers.items()}
            with record_taps(towers, every, features) as taps:
                detector.head(features)
        channels = _check_channels(check, towers, taps)
        max_tail = min(map(len, towers.values()))
        for tail in range(max_tail + 1):
            indices = {branch: len(blocks) - tail for branch, blocks in towers.items()}
            crossed, difference = cross(check, predictions, taps, indices)
            if difference:
                check.refuse(
                    "predict",
                    "does all that its head does after the towers (a student, or a teacher of losses with "
                    "source='student', needs none)",
                    f"its own taps (tail={tail}) do not give its own predictions: {difference} differ, so its "
                    "forward does more than the adapter's towers() and predict()",
                )
            with check.using("predict", "returns all the lists that dense_output() reads"):
                adapter.dense_output(detector, crossed, make_anchors(detector, features))
    return AdapterReport(
        detector=type(detector).__name__,
        adapter=type(adapter).__name__,
        spec=spec,
        anchors=[x.shape[1] for x in output.logits],
        strides=strides_of(detector),
        channels=channels,
        max_tail=max_tail,
    )


def _check_dense_output(
    check: AdapterCheck, features: Sequence[Tensor], predictions: Sequence[Sequence[Tensor]]
) -> tuple[DenseOutput, OutputSpec]:
    detector, adapter = check.detector, check.adapter
    with check.using("dense_output", "reads what its head returns"):
        output = adapter.dense_output(detector, predictions, make_anchors(detector, features))
        output.boxes  # noqa: B018  # decodes
    with check.using("describe", "says what its dense output has"):
        spec = adapter.describe(detector)
    bins = () if spec.bins is None else (spec.bins,)
    kinds = {
        "logits": lambda a: (IMAGES, a, spec.num_classes),
        "box_params": lambda a: (IMAGES, a, 4, *bins),
        "centerness": lambda a: (IMAGES, a),
        "anchors": lambda a: (a,),
        "boxes": lambda a: (IMAGES, a),
    }
    for kind, shape in kinds.items():
        maps = getattr(output, kind)
        if kind == "centerness" and not spec.centerness:
            if maps is not None:
                check.refuse("describe", "says what its dense output has", "it has a centerness of which none is said")
            continue
        if maps is None or len(maps) != len(features):
            found = "None" if maps is None else f"{len(maps)} maps"
            check.refuse("dense_output", "gives one map a level", f"its {kind} are {found} for {len(features)} levels")
        for level, (found, feature) in enumerate(zip(maps, features)):
            size = tuple(feature.shape[-2:])
            wanted = (*shape(output.logits[level].shape[1]), *size, *((4,) if kind in ("anchors", "boxes") else ()))
            if tuple(found.shape) != wanted:
                check.refuse(
                    "dense_output",
                    "gives maps of the shapes that DenseOutput states",
                    f"the {kind} of level {level} have shape {tuple(found.shape)}, expected {wanted} for "
                    f"{spec.num_classes} classes and a map of {size[0]}x{size[1]} cells",
                )
    return output, spec


def _check_inference(check: AdapterCheck, features: Sequence[Tensor], predictions: Sequence[Sequence[Tensor]]) -> None:
    """Write one object into made-up predictions, through the dense output: the detector must report it, and there."""
    detector, adapter = check.detector, check.adapter
    generator = torch.Generator().manual_seed(0)

    def make_up(x: Tensor) -> Tensor:
        # Boxes of some size in every coding: nothing degenerate. In fp32, since NMS takes nothing else on the CPU.
        return 0.2 + 0.6 * torch.rand(x.shape, generator=generator).to(x.device) if x.is_floating_point() else x

    predictions = tree_map_only(Tensor, make_up, predictions)
    anchors = make_anchors(detector, features)
    stride = max(strides_of(detector))
    size = (stride, 2 * stride)
    images = ImageList(features[0].new_zeros(IMAGES, len(pixel_statistics(detector)[0]), *size), [size] * IMAGES)
    task = "gives each location the class scores, anchor and decoding that its forward_inference gives it"
    for level in range(len(features)):
        output = adapter.dense_output(detector, predictions, anchors)
        for x in output.logits:
            x.fill_(_COLD)
        shape = output.logits[level].shape
        image, anchor, cls, row, column = (int(torch.randint(0, n, (), generator=generator)) for n in shape)
        output.logits[level][image, anchor, cls, row, column] = _HOT
        box = output.boxes[level][image, anchor, row, column]
        if not torch.equal(adapter.dense_output(detector, predictions, anchors).logits[level], output.logits[level]):
            check.refuse("dense_output", "gives views", "its logits are no views of the head's maps")
        place = f"class {cls} at anchor {anchor} of cell ({row}, {column}) of level {level} in image {image}"
        results = inference_of(detector)(images, list(features), deepcopy(predictions))
        found = [
            (score, i, int(label), found_box)
            for i, one in enumerate(results)
            for score, label, found_box in zip(one.scores.tolist(), one.pred_classes, one.pred_boxes.tensor)
        ]
        if not found:
            check.refuse("dense_output", task, f"an object of {place} is not among its detections")
        _, found_image, found_cls, found_box = max(found, key=lambda detection: detection[0])
        if (found_image, found_cls) != (image, cls):
            check.refuse("dense_output", task, f"it detects {place} as class {found_cls} in image {found_image}")
        if not any(
            torch.allclose(found_box.float(), x.float(), rtol=1e-3, atol=1e-2) for x in (box, _clipped(box, size))
        ):
            decoded, detected = ([round(v, 1) for v in x.tolist()] for x in (box, found_box))
            check.refuse("dense_output", task, f"it decodes {place} to {decoded}, but detects {detected}")


def _clipped(box: Tensor, size: tuple[int, int]) -> Tensor:
    boxes = Boxes(box[None].clone())
    boxes.clip(size)
    return boxes.tensor[0]


def _check_assignment(check: AdapterCheck, features: Sequence[Tensor], output: DenseOutput) -> None:
    detector, adapter = check.detector, check.adapter
    stride = max(strides_of(detector))
    instances = Instances((stride, 2 * stride))
    corners = torch.tensor([[stride / 4, stride / 4, stride, stride * 3 / 4]])
    instances.gt_boxes = Boxes(corners.to(output.anchors[0]))
    instances.gt_classes = torch.zeros(1, dtype=torch.int64, device=corners.device).to(output.anchors[0].device)
    gt = [instances] * IMAGES
    labelled = label_anchors_of(detector)(make_anchors(detector, features), gt)
    with check.using("assignment", "reads what its label_anchors returns"):
        labels = adapter.assignment(detector, labelled, gt, output.sizes).labels
    found, wanted = [tuple(x.shape) for x in labels], [tuple(x.select(2, 0).shape) for x in output.logits]
    if found != wanted:
        check.refuse(
            "assignment",
            "gives every location of the dense output its label",
            f"its labels have shapes {found}, its locations {wanted}",
        )


def _check_channels(check: AdapterCheck, towers: Mapping[str, Sequence], taps: Taps) -> dict[str, list[int]]:
    """Channels of each branch's taps; what pairing reads off the blocks must be what they make."""
    channels = {}
    task = "lists blocks that end with the channels of their last convolution"
    for branch, blocks in towers.items():
        channels[branch] = [taps[branch, index][0].shape[1] for index in range(len(blocks) + 1)]
        with check.using("towers", task):
            stated = [tap_channels(blocks, index, channels[branch][0]) for index in range(len(blocks) + 1)]
        if stated != channels[branch]:
            check.refuse(
                "towers",
                task,
                f"the blocks of '{branch}' have convolutions to {stated} channels, but give {channels[branch]}",
            )
    return channels
