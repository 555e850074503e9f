"""DistilledDetector: a student that learns from its labels and from a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from d2kd.losses import DistillationLoss
from d2kd.modeling.adapters import get_adapter
from d2kd.modeling.cross_head import cross_head
from d2kd.modeling.dense_output import Assignment, DenseOutput
from d2kd.modeling.distillation_state import DistillationState
from d2kd.modeling.monitors import check_finite, gap_at_positives
from d2kd.modeling.normalizers import compute_normalizers
from d2kd.modeling.pairing import check_pairing, same_layout, tap_index, warn_of_stacked_terms
from d2kd.modeling.region_maps import make_regions, source_key, stack_parts
from d2kd.modeling.student import StudentRun, run_student
from d2kd.modeling.teacher import Teacher, TeacherRun, input_format_of

__all__ = ["DistilledDetector"]


#: The student's own tables: what it holds beside its children is moved, cast, saved and loaded with this module.
_ADOPTED = (
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@META_ARCH_REGISTRY.register()
class DistilledDetector(nn.Module):
    """
    A detector with the student's parameters under the student's own names, trained by the student's own losses plus
    distillation losses. In eval mode it is the student.

    Args:
        student: the ``DenseDetector`` to train, or its config node.
        teacher: ``{"model": node or module, "checkpoint": path or URL, "input_format": None | "BGR" | "RGB"}``: the
            arguments of :class:`Teacher`. Built and loaded by :meth:`load_teacher`, before the first step at the
            latest, and not at all in evaluation or without losses.
        losses: name -> config node or :class:`DistillationLoss`; a name mapped to None is off. None or empty: the
            plain student, the baseline of every comparison.
        input_format: channel order of the student's images; None: its own ``input_format``, else "BGR".

    Raises:
        TypeError: the student belongs to no family that an adapter reads, or a loss is no ``DistillationLoss``.
        ValueError: losses without a teacher, or values that contradict each other.
    """

    @configurable
    def __init__(
        self,
        *,
        student: DenseDetector | Mapping,
        teacher: Mapping | None = None,
        losses: Mapping[str, DistillationLoss | Mapping | None] | None = None,
        input_format: str | None = None,
    ) -> None:
        super().__init__()
        student = instantiate(student)
        get_adapter(student)
        for table in _ADOPTED:
            setattr(self, table, getattr(student, table))
        for name, child in student.named_children():
            if name == "distillation":
                raise ValueError("The student has a child named 'distillation', a name that d2kd uses: rename it.")
            self.add_module(name, child)
        object.__setattr__(self, "_student", student)  # kept out of the module tree
        self.input_format = input_format_of(student, input_format, "model.input_format")

        with torch.random.fork_rng(devices=[]):  # the baseline of this seed draws the same numbers after this
            built = {name: instantiate(loss) for name, loss in (losses or {}).items() if loss is not None}
        for name, loss in built.items():
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"model.losses.{name}: {name!r} cannot name a loss, choose another name.")
            if not isinstance(loss, DistillationLoss):
                raise TypeError(f"model.losses.{name} is a {type(loss).__name__}, expected a DistillationLoss.")
        if built and teacher is None:
            raise ValueError(
                f"model.losses has {', '.join(built)} but model.teacher is null: name a teacher, or set "
                "model.losses=null to train the student alone."
            )
        self.distillation = DistillationState(built)
        self._teacher = Teacher(**teacher) if built else None
        self._paired = False
        self._same_layout = True
        warn_of_stacked_terms(built)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments for a yacs config: ``MODEL.META_ARCHITECTURE: DistilledDetector``."""
        from d2kd.yacs_config import constructor_arguments  # it builds on this module

        return constructor_arguments(cfg)

    # ---- who is who ------------------------------------------------------------------------------------------

    @property
    def student(self) -> DenseDetector:
        """The plain detector, looking at this model's modules (they may have been replaced since, e.g. by SyncBN)."""
        for name in self._student._modules:
            self._student._modules[name] = self._modules[name]
        return self._student

    @property
    def teacher(self) -> Teacher | None:
        """None without losses, and in a deep copy or an unpickled model."""
        return self._teacher

    @property
    def losses(self) -> Mapping[str, DistillationLoss]:
        """The distillation losses by name."""
        return self.distillation.losses

    @property
    def device(self) -> torch.device:
        return self._student.device

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
        if self._teacher is None:
            raise RuntimeError(
                "This DistilledDetector is a copy (deepcopy or pickle), and copies have no teacher: train the original."
            )
        if self._paired:
            return
        if not self._teacher.is_loaded:
            with torch.random.fork_rng(devices=[]):
                self._teacher.load(self.device, self.pixel_mean.dtype)
        check_pairing(self.student, self._teacher.detector, self.losses)
        self._same_layout = same_layout(self.student, self._teacher.detector)
        self._paired = True  # last: a pair that was refused is refused again

    def train(self, mode: bool = True) -> DistilledDetector:
        super().train(mode)
        self.student.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> DistilledDetector:
        super()._apply(fn, recurse)
        if self._teacher is not None:
            self._teacher._apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_teacher": None}

    # ---- one step --------------------------------------------------------------------------------------------

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: as for the student; in training each needs "image" (C, H, W) and "instances".

        Returns:
            in training, scalars by name: the student's detection losses, then ``loss_kd_<name>`` for each
            distillation loss, the same keys at every step; in eval mode, the student's detections.

        Raises:
            FloatingPointError: a loss is not finite on some rank; raised on all ranks, naming the terms.
        """
        if not self.training:
            return self.student(batched_inputs)

        if any(loss.weight > 0 for loss in self.losses.values()):
            self.load_teacher()
        active = self._active_losses()
        tails = {loss.tail for loss in active.values() if loss.source == "crossed"}
        student = self._run_student(batched_inputs, tails)
        sources = {"student": student.output}
        assignments = {"student": student.assignment}
        regions: dict[str, list[Sequence[Tensor]]] = {}
        if active:
            teacher = self._run_teacher(batched_inputs, student, active)
            for tail in tails:
                sources["crossed", tail] = self._cross(student, teacher, tail)
            teacher.taps.clear()  # read by the crossing alone
            if tails:
                assignments["crossed"] = self._teacher_assignment(student)
            regions = make_regions(active, sources, teacher.output, assignments)
        normalizers = self._normalizers(active, regions, assignments)

        losses = dict(student.losses)
        monitors: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if name not in active:
                losses[f"loss_kd_{name}"] = sum((p.sum() * 0 for p in loss.parameters()), self.pixel_mean.new_zeros(()))
                continue
            with torch.autocast(self.device.type, enabled=False):
                weights = stack_parts(regions[name])
                sums = loss(sources[source_key(loss)], teacher.output, weights, assignments[loss.source])
            losses[f"loss_kd_{name}"] = loss.scheduled_weight * (sums / normalizers[name]).sum()
            for part, region in zip(loss.parts, regions[name]):
                # Each location counts with its region's weight: how much of an image this part distils.
                count = sum(w.sum() for w in region) / len(batched_inputs)
                monitors[f"kd/{name}_{part.name}{'_' if part.name else ''}locations"] = count
        if active and self._same_layout:
            monitors["kd/gap_at_positives"] = gap_at_positives(student.output, teacher.output, student.assignment)
        check_finite(losses)
        if monitors:
            values = torch.stack([value.float() for value in monitors.values()]).tolist()
            get_event_storage().put_scalars(**dict(zip(monitors, values)), smoothing_hint=True)
        return losses

    def _active_losses(self) -> dict[str, DistillationLoss]:
        """The losses that are on in this step; tells each which step it is, and logs what schedules make of weights."""
        if not self.losses:
            return {}
        storage = get_event_storage()
        for name, loss in self.losses.items():
            loss.iteration = storage.iter
            if loss.schedule is not None:
                storage.put_scalar(f"kd/{name}_weight", loss.scheduled_weight, smoothing_hint=False)
        return {name: loss for name, loss in self.losses.items() if loss.scheduled_weight > 0}

    def _run_student(self, batched_inputs: Sequence[Mapping], tails: set[int]) -> StudentRun:
        self.distillation.restore_normalizer(self.student)
        return run_student(self.student, batched_inputs, tap_indices=self._tap_indices(self.student, tails))

    def _run_teacher(
        self, batched_inputs: Sequence[Mapping], student: StudentRun, active: Mapping[str, DistillationLoss]
    ) -> TeacherRun:
        tails = {loss.tail for loss in active.values() if loss.source == "crossed"}
        return self._teacher.run(
            batched_inputs,
            input_format=self.input_format,
            canvas=student.canvas,
            sizes=student.output.sizes,
            tap_indices=self._tap_indices(self._teacher.detector, tails),
            keep_features=any(loss.task == "feature" for loss in active.values()),
        )

    def _tap_indices(self, detector: DenseDetector, tails: set[int]) -> dict[str, set[int]]:
        if not tails:
            return {}
        branches = get_adapter(detector).towers(detector.head)
        return {branch: {tap_index(detector, branch, tail) for tail in tails} for branch in branches}

    def _cross(self, student: StudentRun, teacher: TeacherRun, tail: int) -> DenseOutput:
        detector = self._teacher.detector
        adapter = get_adapter(detector)
        branches = adapter.towers(detector.head)
        predictions = cross_head(
            adapter,
            detector.head,
            student.taps,
            teacher.taps,
            student_indices={branch: tap_index(self.student, branch, tail) for branch in branches},
            teacher_indices={branch: tap_index(detector, branch, tail) for branch in branches},
        )
        return adapter.dense_output(detector, predictions, detector.anchor_generator(student.output.features))

    def _teacher_assignment(self, student: StudentRun) -> Assignment:
        """The labels of the anchors that the crossed output lives in."""
        if self._same_layout:
            return student.assignment
        detector = self._teacher.detector
        anchors = detector.anchor_generator(student.output.features)
        labelled = detector.label_anchors(anchors, student.gt_instances)
        return get_adapter(detector).assignment(detector, labelled, student.gt_instances, student.output.sizes)

    def _normalizers(
        self,
        active: Mapping[str, DistillationLoss],
        regions: Mapping[str, Sequence[Sequence[Tensor]]],
        assignments: Mapping[str, Assignment],
    ) -> dict[str, Tensor]:
        """What each loss's sums are divided by; keeps the student's own normaliser for the checkpoint."""
        ema = float(getattr(self._student, "loss_normalizer", 0))
        normalizers, mean_ema = compute_normalizers(active, regions, assignments, ema=ema)
        self.distillation.loss_normalizer.copy_(mean_ema)
        return normalizers
