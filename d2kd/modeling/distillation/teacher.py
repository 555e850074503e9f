"""The teacher: built late, loaded or refused, run without gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from d2kd.checkpoint import check_finite
from d2kd.losses import DistillationLoss
from d2kd.modeling.adapters import check_lists, get_adapter, input_format_of, record_taps, tap_indices
from d2kd.modeling.detectors.interface import check_detector, make_anchors, make_statistics_float, pixel_statistics
from d2kd.modeling.distillation.overlap import Overlap
from d2kd.modeling.distillation.teacher_engine import TeacherEngine, own_precision
from d2kd.modeling.distillation.teacher_step import TeacherStep
from d2kd.modeling.distillation.teacher_weights import count_initial_norms, load_weights
from d2kd.structures import DenseOutput

__all__ = ["Teacher", "run_teacher"]

# Below Detectron2's logger: whichever trainer runs has set that one up, and which teacher was loaded must be seen.
logger = logging.getLogger(f"detectron2.{__name__}")


class Teacher:
    """
    A frozen detector in eval mode. Not an ``nn.Module``: nothing that holds it registers, saves or trains it.

    Args:
        model: config node of a ``DenseDetector``, or one already built (and loaded, if ``checkpoint`` is None).
        checkpoint: path or URL that Detectron2 can read.
        weights: which of the file's entries are its weights, such as "ema", an average that some trainers keep beside
            "model".
        input_format: channel order that the teacher was trained with; None: its own ``input_format``, else "BGR".
        class_map: teacher class id -> student class id, or a node that makes one; None: both have the same ids.
            Classes that it leaves out take no part; several that it maps to one are merged
            (:meth:`DenseOutput.merge_classes`).
        precision: "fp32": its weights have the dtype of the model that is taught and it runs under the training's
            autocast, if any. "bf16" or "fp16": its weights are cast once, when it is loaded, and it runs outside of
            autocast, as does the part of its head that taps are sent through; that backward pass in fp16 needs a loss
            scale. Images are normalised, boxes decoded and losses computed in fp32.
        engine: "eager": as it is. "folded": a copy whose batch norms are merged into the convolutions before them, in
            channels_last. "compile": that copy with its backbone and head compiled.
        preflight: "on": after the first batches of a run it is examined whether the teacher knows their objects, and a
            run whose teacher does not is stopped (:class:`Preflight`). "off": not.

    Raises:
        ValueError: a model node without a checkpoint: a teacher of random weights teaches nothing; or an option that
            does not exist.
    """

    def __init__(
        self,
        model: Mapping[str, Any] | DenseDetector,
        checkpoint: str | None = None,
        input_format: str | None = None,
        class_map: Mapping[int, int] | Mapping[str, Any] | None = None,
        precision: str = "fp32",
        engine: str = "folded",
        preflight: str = "on",
        weights: str = "model",
    ) -> None:
        if not checkpoint and not isinstance(model, nn.Module):
            raise ValueError(
                f"model.teacher.checkpoint is {checkpoint!r}, expected a path or URL: a teacher that is not loaded "
                "teaches nothing."
            )
        self._model = model
        self._checkpoint = checkpoint
        self._weights = weights
        self._input_format = input_format
        self._class_map = class_map
        self._engine = TeacherEngine(precision, engine)
        # A command line's off is yaml's False.
        states = {"on": True, "off": False, True: True, False: False}
        if preflight not in states:
            raise ValueError(
                f"model.teacher.preflight is {preflight!r}, expected 'on' or 'off' (in a yacs config: "
                "MODEL.DISTILLATION.TEACHER_PREFLIGHT)."
            )
        self.preflight = states[preflight]
        self.initial_norms = 0
        self.num_parameters = 0
        self._detector: DenseDetector | None = None
        self._unchecked: DenseDetector | None = None  # the plain teacher, until the engine was compared with it
        self._last_anchors: tuple[list[tuple[int, int]], list[Boxes]] | None = None  # with the sizes of their levels

    @property
    def is_loaded(self) -> bool:
        return self._detector is not None

    @property
    def detector(self) -> DenseDetector:
        """
        Raises:
            RuntimeError: :meth:`load` was not called.
        """
        if self._detector is None:
            raise RuntimeError("The teacher is not loaded yet: call load_teacher() of the DistilledDetector first.")
        return self._detector

    @property
    def class_map(self) -> Mapping[int, int] | None:
        """Teacher class id -> student class id; made anew at each access, since a node may read dataset metadata."""
        return instantiate(self._class_map)

    @torch.inference_mode(False)  # a graph will need its layers, whoever asks for them first
    def load(self, device: torch.device, dtype: torch.dtype, *, apart_from: Iterable[nn.Parameter] = ()) -> None:
        """
        Build the teacher, load its checkpoint, freeze it and move it.

        Args:
            device, dtype: where to, and its dtype where it has none of its own.
            apart_from: the student's parameters.

        Raises:
            ValueError: a checkpoint with missing, unexpected or mismatched keys, or values that are not finite, all
                listed; or with other pixel statistics than the model's, or parameters that the student has too.
            TypeError: a model that no adapter reads, or one with its own ``preprocess_image``.
        """
        detector = instantiate(self._model)
        get_adapter(detector)
        make_statistics_float(detector)
        check_detector(detector, "model.teacher.model")
        if type(detector).preprocess_image is not DenseDetector.preprocess_image:
            raise TypeError(
                f"The teacher {type(detector).__name__} overrides preprocess_image, which d2kd replaces (the teacher "
                "sees the student's canvas): move what it adds into its backbone."
            )
        field = "model.teacher.input_format (in a yacs config: MODEL.DISTILLATION.TEACHER_INPUT_FORMAT)"
        self.input_format = input_format_of(detector, self._input_format, field)
        if self._checkpoint:
            load_weights(detector, self._checkpoint, self._weights)
        else:
            check_finite(detector, "model.teacher.model")
        self.initial_norms = count_initial_norms(detector)
        self.num_parameters = sum(p.numel() for p in detector.parameters())  # its engine may have fewer
        shared = {id(p) for p in apart_from} & {id(p) for p in detector.parameters()}
        if shared:
            raise ValueError(
                f"The teacher and the student share {len(shared)} parameters, which would be frozen: build the teacher "
                "(model.teacher.model) apart from the student, or give a copy.deepcopy of it."
            )
        detector.requires_grad_(False)
        self._detector = detector.eval().to(device=device, dtype=dtype)
        smallest = self.canvas(1, 1)
        self._detector = None  # should the next line fail
        self._detector = self._engine.make(detector, smallest)
        self._unchecked = detector if self._detector is not detector else None
        logger.info(
            "Teacher: %s, %.2f M parameters, from %s, input %s",
            type(detector).__name__,
            self.num_parameters / 1e6,
            self._checkpoint or "the module given",
            self.input_format,
        )
        if not self.preflight:
            logger.warning("model.teacher.preflight is off: nobody looks whether the teacher knows the training data.")

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """
        The student's canvas rounded up to the teacher's padding constraints.

        Raises:
            ValueError: the teacher takes square images smaller than that.
        """
        backbone = self.detector.backbone
        constraints = backbone.padding_constraints
        # The misspelt key is that of Detectron2's SimpleFeaturePyramid, whose property says 0.
        keys = ("size_divisibility", "size_divisiblity")
        divisor = next((constraints[key] for key in keys if key in constraints), backbone.size_divisibility)
        square = constraints.get("square_size", 0)
        if square:
            if max(height, width) > square:
                raise ValueError(
                    f"The teacher pads to squares of {square} pixels, but the student's canvas is {height}x{width}: "
                    "resize the training images to fit (dataloader.train.mapper.augmentations)."
                )
            height = width = square
        if divisor > 1:
            height, width = -(-height // divisor) * divisor, -(-width // divisor) * divisor
        return height, width

    @torch.no_grad()
    def run(
        self,
        batched_inputs: Sequence[Mapping[str, Any]],
        *,
        input_format: str,
        canvas: tuple[int, int],
        levels: Sequence[int],
        tap_indices: Mapping[str, set[int]],
        keep_features: bool = False,
        keep_predictions: bool = True,
    ) -> TeacherStep:
        """
        Backbone and head on the student's images; never the inference path, which changes logits in place.

        Args:
            batched_inputs: the training batch; only ``"image"`` (C, H, W) is read.
            input_format: channel order of those images.
            canvas: (H, W) of the student's padded batch.
            levels: which of its levels to return.
            tap_indices: for each branch, after how many blocks to record taps.
            keep_features: whether the dense output holds the maps that the head was given.
            keep_predictions: whether it holds what the head made of them; if not, the head does not run.
        """
        detector = self.detector
        adapter = get_adapter(detector)
        height, width = self.canvas(*canvas)
        pixel_mean, pixel_std = pixel_statistics(detector)
        batch = pixel_mean.new_zeros(len(batched_inputs), len(pixel_mean), height, width)
        for padded, item in zip(batch, batched_inputs):
            image = item["image"].to(batch.device)
            if input_format != self.input_format:
                image = image.flip(0)
            h, w = image.shape[-2:]
            padded[:, :h, :w] = (image - pixel_mean) / pixel_std

        if self._unchecked is not None:
            self._engine.check(self._unchecked, detector, batch)
            self._unchecked = None

        with own_precision(detector):
            maps = detector.backbone(batch)
            features = [maps[name] for name in detector.head_in_features]
            sizes = [(x.shape[-2], x.shape[-1]) for x in features]
            anchors = self._anchors(features, sizes)
            # The head has a hook that gives its maps the student's memory layout; the maps that it is given have not.
            kept = [features[level].contiguous() for level in levels] if keep_features else None
            step = TeacherStep(
                output=DenseOutput.of_features(kept or []),
                taps={},
                anchors=anchors,
                sizes=sizes,
                levels=levels,
                canvas=(height, width),
            )
            if not keep_predictions:
                return step
            with record_taps(adapter.towers(detector.head) if tap_indices else {}, tap_indices, features) as taps:
                predictions = detector.head(features)
            check_lists(detector, predictions)
        output = adapter.dense_output(detector, predictions, anchors).select(levels)
        output.features = kept
        return replace(step, output=output, taps={key: [x[level] for level in levels] for key, x in taps.items()})

    def _anchors(self, features: Sequence[Tensor], sizes: list[tuple[int, int]]) -> list[Boxes]:
        """Those of the last batch, if its levels had these sizes."""
        if self._last_anchors is None or self._last_anchors[0] != sizes:
            self._last_anchors = sizes, make_anchors(self.detector, features)
        return self._last_anchors[1]

    def apply_to_tensors(self, fn: Callable[[Tensor], Tensor]) -> None:
        """
        Follow the device of the model that is taught, and with precision "fp32" its dtype: ``nn.Module.to`` and its
        kin hand ``fn`` on.
        """
        self._last_anchors = None
        if self._detector is not None:
            self._detector._apply(self._engine.moved(fn))
        if self._unchecked is not None:
            self._unchecked._apply(fn)


def run_teacher(
    teacher: Teacher,
    images: ImageList,
    batched_inputs: Sequence[Mapping[str, Any]],
    overlap: Overlap,
    losses: Iterable[DistillationLoss],
    *,
    input_format: str,
) -> TeacherStep:
    """
    :meth:`Teacher.run` on the student's canvas, as far as the losses read the teacher: on the levels and classes that
    both have.

    Args:
        teacher: loaded.
        images: the batch as the student's ``preprocess_image`` returns it; it is not changed.
        batched_inputs: the batch that it was made of.
        overlap: which levels and classes are common.
        losses: those of this step.
        input_format: channel order of ``batched_inputs``.

    Raises:
        TypeError: the student resized its images; the teacher is given them as they are.
    """
    for item, size in zip(batched_inputs, images.image_sizes, strict=True):
        given = tuple(item["image"].shape[-2:])
        if given != tuple(size):
            raise TypeError(
                f"The student's preprocess_image makes an image of {size[0]}x{size[1]} pixels of one of "
                f"{given[0]}x{given[1]}, which the teacher sees as it is: resize in the data mapper "
                "(dataloader.train.mapper.augmentations)."
            )
    height, width = images.tensor.shape[-2:]
    losses = list(losses)
    step = teacher.run(
        batched_inputs,
        input_format=input_format,
        canvas=(height, width),
        levels=overlap.teacher_levels,
        tap_indices=tap_indices(teacher.detector, {loss.tail for loss in losses if loss.source == "crossed"}),
        keep_features=any(loss.task == "feature" for loss in losses),
        keep_predictions=any(loss.reads_predictions for loss in losses),
    )
    return replace(step, output=step.output.merge_classes(overlap.teacher_classes))
