"""DistilledDetector: a student that learns from its labels and from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from detectron2.config import instantiate
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import get_event_storage
from torch import Tensor

from d2kd.losses import DistillationLoss
from d2kd.modeling.adapters import get_adapter, input_format_of
from d2kd.modeling.detectors.interface import check_detector, make_statistics_float
from d2kd.modeling.distillation.adopted_student import AdoptedStudent
from d2kd.modeling.distillation.agreement import raised_on_all_ranks
from d2kd.modeling.distillation.batch_check import check_alone, check_batch
from d2kd.modeling.distillation.crossing import crossed_assignment, crossed_output
from d2kd.modeling.distillation.health import OBJECTS, Health
from d2kd.modeling.distillation.monitors import read_step, scores_at_positives
from d2kd.modeling.distillation.non_finite import StepEvidence
from d2kd.modeling.distillation.normalizers import check_countable, compute_normalizers
from d2kd.modeling.distillation.overlap import Overlap
from d2kd.modeling.distillation.pairing import check_pairing, warn_of_stacked_terms
from d2kd.modeling.distillation.preflight import Preflight
from d2kd.modeling.distillation.state import DistillationState, build_losses, make_tap_projectors
from d2kd.modeling.distillation.step_regions import make_regions, region_sizes
from d2kd.modeling.distillation.student_step import (
    asserts_boxes,
    blank_share,
    images_of_use,
    labels_of,
    predict,
    train_student,
)
from d2kd.modeling.distillation.teacher import Teacher, run_teacher
from d2kd.modeling.distillation.terms import active_losses, add_terms
from d2kd.modeling.distillation.wrappers import NO_REPLICAS, check_shards
from d2kd.structures import kept_random_state

__all__ = ["DistilledDetector"]


class DistilledDetector(AdoptedStudent):
    """
    A detector with the student's parameters under the student's own names, trained by the student's own losses plus
    distillation losses. In eval mode it is the student.

    Args:
        student: the ``DenseDetector`` to train, or its config node.
        teacher: ``{"model": node or module, "checkpoint": path or URL, "weights": "model" | entry of that file,
            "input_format": None | "BGR" | "RGB" | "L", "class_map": None | {teacher id: student id}, "precision":
            "fp32" | "bf16" | "fp16", "engine": "eager" | "folded" | "compile", "preflight": "on" | "off"}``: the
            arguments of :class:`Teacher`. Built and loaded by :meth:`load_teacher`, before the first step at the
            latest, and not at all in evaluation or without losses.
        losses: name -> config node or :class:`DistillationLoss`; a name mapped to None is off. None or empty: the
            plain student, the baseline of every comparison.
        input_format: channel order of the student's images; None: its own ``input_format``, else "BGR".
        tap_projector_channels: [student's, teacher's] channels of the taps, where they differ: crossed taps go through
            a projector first, a 1x1 convolution for each branch and tail, trained with the student and saved under
            ``distillation.tap_projectors``. None: they have one width.

    Raises:
        TypeError: the student belongs to no family that an adapter reads, or a loss is no ``DistillationLoss``.
        ValueError: losses without a teacher, or values that contradict each other.
    """

    distillation: DistillationState

    def __init__(
        self,
        *,
        student: DenseDetector | Mapping[str, Any],
        teacher: Mapping[str, Any] | None = None,
        losses: Mapping[str, DistillationLoss | Mapping[str, Any] | None] | None = None,
        input_format: str | None = None,
        tap_projector_channels: Sequence[int] | None = None,
    ) -> None:
        detector: DenseDetector = instantiate(student)
        get_adapter(detector)
        make_statistics_float(detector)
        check_detector(detector, "model.student")
        super().__init__(detector)
        self.input_format = input_format_of(
            detector, input_format, "model.input_format (in a yacs config: INPUT.FORMAT)"
        )

        with kept_random_state(self.device):  # the baseline of this seed draws the same numbers after this
            built = build_losses(losses or {})
            tap_projectors = make_tap_projectors(detector, built.values(), tap_projector_channels)
        if built and teacher is None:
            raise ValueError(
                f"model.losses has {', '.join(built)} but model.teacher is null: name a teacher, or set "
                "model.losses=null to train the student alone."
            )
        self.tap_projector_channels = tap_projector_channels
        self._teacher = Teacher(**teacher) if built and teacher is not None else None
        self._overlap: Overlap | None = None  # until the pair was checked
        self._preflight = Preflight()
        self._health = Health()
        self.distillation = DistillationState(built, tap_projectors).to(self.device)  # last, see AdoptedStudent
        warn_of_stacked_terms(built)

    # ---- the teacher -------------------------------------------------------------------------------------------------

    @property
    def teacher(self) -> Teacher | None:
        """None without losses, and in a deep copy or an unpickled model."""
        return self._teacher

    @property
    def losses(self) -> Mapping[str, DistillationLoss]:
        """The distillation losses by name, to be read: which there are is decided when the model is built."""
        losses = self.distillation.losses.items()
        return MappingProxyType({name: x for name, x in losses if isinstance(x, DistillationLoss)})

    @property
    def overlap(self) -> Overlap:
        """
        The levels and classes in which the losses compare student and teacher.

        Raises:
            RuntimeError: :meth:`load_teacher` was not called, or there are no losses.
        """
        if self._overlap is None:
            raise RuntimeError("The pair was not checked yet: call load_teacher() of a DistilledDetector with losses.")
        return self._overlap

    def load_teacher(self) -> None:
        """
        Build and load the teacher and check that it can teach this student; does nothing without losses or when
        it is loaded. The random state of the process is left as it was.

        Raises:
            RuntimeError: this model is a copy, which has no teacher.
            ValueError: the checkpoint does not fit the teacher's model, or the pair does not fit a loss.
            FileNotFoundError: no checkpoint there.
        """
        if not self.losses:
            return
        teacher = self._held_teacher()
        if self._overlap is not None:
            return
        if not teacher.is_loaded:
            with kept_random_state(self.device):
                teacher.load(self.device, self.pixel_mean.dtype, apart_from=self.student.parameters())
        self._overlap = check_pairing(
            self.student,
            teacher.detector,
            self.losses,
            class_map=teacher.class_map,
            tap_projector_channels=self.tap_projector_channels,
            input_formats=(self.input_format, teacher.input_format),
        )

    def twin(self) -> DistilledDetector:
        """
        A deep copy that the same teacher teaches: whatever is done with it leaves this model as it is. It measures and
        logs no gradient shares, which would be read as the training's.
        """
        copied = deepcopy(self)
        copied._teacher, copied._health = self._teacher, Health(measures_shares=False)
        return copied

    def _held_teacher(self) -> Teacher:
        if self._teacher is None:
            raise RuntimeError(
                "This DistilledDetector is a copy (deepcopy or pickle), and copies have no teacher: train the original."
            )
        return self._teacher

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistilledDetector:
        super()._apply(fn, recurse)
        if self._teacher is not None:
            self._teacher.apply_to_tensors(fn)
        self._health.forget()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_teacher": None, "_health": Health(), "_preflight": Preflight()}

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise TypeError(NO_REPLICAS)

    # ---- one step --------------------------------------------------------------------------------------------

    def forward(
        self, batched_inputs: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: as for the student; in training each has "image" (C, H, W) and, if it has labels,
                "instances". One without, or with ``"unlabeled": True``, is seen by the losses alone whose regions need
                no labels, and left out of a step without such losses. With several ranks a rank's share may be empty:
                its losses are zeros in the graph of all parameters.
            args, kwargs: what else the student's own ``forward`` takes, in eval mode.

        Returns:
            in training, scalars by name: the student's detection losses, then ``loss_kd_<name>`` for each
            distillation loss, the same keys at every step; in eval mode, the student's detections.

        Raises:
            FloatingPointError: a loss is not finite on some rank; raised on all ranks, naming the terms, the rank, its
                images and the likely cause.
            ValueError: no images, in a single process; what :class:`Preflight` and :class:`Health` find, among others;
                on all ranks.
            TypeError: torch's ``fully_shard`` was called for the student or the teacher as a whole; or further
                arguments in training.
        """
        if not self.training:
            return self.student(batched_inputs, *args, **kwargs)
        check_alone(args, kwargs)

        if any(loss.weight > 0 for loss in self.losses.values()):
            self.load_teacher()
            self._preflight.see(
                self.student, self._held_teacher(), self.overlap, batched_inputs, input_format=self.input_format
            )
        active = active_losses(self.losses)
        check_shards(self._student, self._held_teacher().detector if active else None)
        takers = [name for name, loss in active.items() if any(spec.label_free for spec in loss.regions)]
        batched_inputs, num_labelled = images_of_use(batched_inputs, takers)
        num_images = len(batched_inputs)
        batched_inputs = batched_inputs or blank_share(self.student)
        tails = {loss.tail for loss in active.values() if loss.source == "crossed"}

        self.distillation.restore_normalizer(self.student)
        teacher = None
        iteration = get_event_storage().iter
        loaded = self._teacher.detector if self._teacher is not None and self._teacher.is_loaded else None
        with raised_on_all_ranks(self.device) as raise_if:  # what may be wrong with one rank
            self._health.begin(self.student, self.distillation, self.losses, loaded, iteration)
            check_batch(self.student, batched_inputs, key="model.student", raise_if=raise_if)
            check_countable(active, num_images - num_labelled)
            # One copy for student and teacher, made without waiting for the device.
            batched_inputs = [
                {**item, "image": item["image"].to(self.device, non_blocking=True)} for item in batched_inputs
            ]
            images = self.student.preprocess_image(batched_inputs)
            gt_instances, common_objects = labels_of(self.student, images, batched_inputs[:num_labelled], self._overlap)
            if active:  # before the student: none of its activations waits for a backward pass yet
                teacher = run_teacher(
                    self._held_teacher(),
                    images,
                    batched_inputs,
                    self.overlap,
                    active.values(),
                    input_format=self.input_format,
                )
        evidence = StepEvidence(batched_inputs, iteration, self, loaded, None if teacher is None else teacher.output)
        prediction = predict(self.student, images, tails)  # where synchronised batch norm waits for other ranks
        if asserts_boxes(self.student):
            with raised_on_all_ranks(self.device) as raise_if:
                raise_if(~prediction.is_finite, partial(evidence.error, "the student's box predictions"))
        student = train_student(
            self.student,
            images,
            prediction,
            gt_instances,
            common_objects,
            num_labelled=num_labelled,
            overlap=self._overlap,
        )
        losses = dict(student.losses)
        losses.update({f"loss_kd_{name}": self.distillation.zero_of(loss) for name, loss in self.losses.items()})
        sources = {("student", 0): student.output}
        assignments = {"student": student.assignment}
        regions: dict[str, list[Sequence[Tensor]]] = {}
        if teacher is not None:
            teacher = teacher.crop(student.output.sizes)
            detector = self._held_teacher().detector
            for tail in tails:
                sources["crossed", tail] = crossed_output(
                    self.student,
                    detector,
                    student.taps,
                    teacher,
                    self.overlap,
                    tail=tail,
                    tap_projectors=self.distillation.tap_projectors_of(tail),
                )
            teacher.taps.clear()  # read by the crossing alone
            if tails:
                assignments["crossed"] = crossed_assignment(
                    detector, teacher, student.assignment, student.gt_instances, self.overlap, common_objects
                )
            regions = make_regions(active, sources, teacher.output, assignments, num_images=num_images)
        normalizers, running = compute_normalizers(
            active,
            regions,
            assignments,
            num_images=num_images,
            loss_normalizer=float(getattr(self._student, "loss_normalizer", 0)),
            positives_per_image=self.distillation.positives_per_image,
        )
        self.distillation.keep(**running)
        monitors: dict[str, Tensor] = {}
        if teacher is not None:
            with torch.autocast(self.device.type, enabled=False):
                add_terms(losses, active, sources, teacher.output, regions, normalizers)
            monitors = region_sizes(active, regions, num_images, num_labelled)
            monitors[OBJECTS] = self.pixel_mean.new_full((), sum(map(len, student.assignment.gt_boxes)))
            if self.overlap.same_anchors and teacher.output.logits:
                monitors |= scores_at_positives(student.output, teacher.output, student.assignment)
            monitors |= self._health.shares(losses, prediction.output.features or [], iteration)
        if takers and num_labelled < num_images:
            monitors["kd/unlabeled_images"] = self.pixel_mean.new_full((), num_images - num_labelled)
        values, nonzero = read_step(losses, monitors, evidence)
        self._health.end(active, values, nonzero, iteration)
        if values:
            get_event_storage().put_scalars(**values, smoothing_hint=True)
        return losses
