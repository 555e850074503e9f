"""What must agree between one student, one teacher and one loss; checked before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from d2kd.losses import SOURCES, DistillationLoss
from d2kd.modeling.adapters import get_adapter
from d2kd.modeling.probe import crosses_itself
from d2kd.modeling.taps import tap_channels

__all__ = ["check_pairing", "same_layout", "tap_index", "warn_of_stacked_terms"]

logger = logging.getLogger(__name__)


def _strides(detector: DenseDetector) -> list[int]:
    shapes = detector.backbone.output_shape()
    return [shapes[name].stride for name in detector.head_in_features]


def _head_in_channels(detector: DenseDetector) -> int:
    return detector.backbone.output_shape()[detector.head_in_features[0]].channels


def _anchor_difference(student: DenseDetector, teacher: DenseDetector) -> str | None:
    """The first difference between the anchors of a 2x2 map of every level; None without any."""
    probes = []
    for detector in (student, teacher):
        maps = [torch.zeros(1, 1, 2, 2, device=detector.device) for _ in detector.head_in_features]
        probes.append([boxes.tensor for boxes in detector.anchor_generator(maps)])
    if len(probes[0]) != len(probes[1]):
        return f"{len(probes[0])} and {len(probes[1])} levels"
    for level, (ours, theirs) in enumerate(zip(*probes)):
        if ours.shape != theirs.shape:
            return f"{len(ours) // 4} and {len(theirs) // 4} a cell of level {level}"
        for a, b in zip(ours.tolist(), theirs.tolist()):
            if a != b:
                return f"{a} and {b} on level {level}"
    return None


def same_layout(student: DenseDetector, teacher: DenseDetector) -> bool:
    """Whether both put the same anchors on the same cells (compared on a 2x2 map of every level)."""
    return _anchor_difference(student, teacher) is None


def tap_index(detector: DenseDetector, branch: str, tail: int) -> int:
    """Number of tower blocks before the tap that leaves ``tail`` blocks; :func:`check_pairing` sees that they exist."""
    return len(get_adapter(detector).towers(detector.head)[branch]) - tail


def _check_taps(name: str, tail: int, student: DenseDetector, teacher: DenseDetector) -> None:
    student_towers = get_adapter(student).towers(student.head)
    teacher_towers = get_adapter(teacher).towers(teacher.head)
    if student_towers.keys() != teacher_towers.keys():
        raise ValueError(
            f"model.losses.{name} crosses heads, but the student's head has the towers {sorted(student_towers)} and "
            f"the teacher's {sorted(teacher_towers)}: choose losses with source='student'."
        )
    for branch in teacher_towers:
        for who, towers in (("student", student_towers), ("teacher", teacher_towers)):
            depth = len(towers[branch])
            if tail > depth:
                raise ValueError(
                    f"model.losses.{name} has tail={tail}, but the '{branch}' tower of the {who}'s head has {depth} "
                    f"blocks: set model.losses.{name}.tail to {depth} or less."
                )
        channels = [
            tap_channels(towers[branch], tap_index(detector, branch, tail), _head_in_channels(detector))
            for detector, towers in ((student, student_towers), (teacher, teacher_towers))
        ]
        if channels[0] != channels[1]:
            raise ValueError(
                f"model.losses.{name} (tail={tail}) sends the student's {channels[0]} channels of the '{branch}' tower "
                f"into the teacher's head, which takes {channels[1]} there: give both heads the same width "
                "(model.student.head.conv_dims, or the FPN's out_channels where the tap is the head's input)."
            )
    indices = {branch: tap_index(teacher, branch, tail) for branch in teacher_towers}
    if not crosses_itself(teacher, get_adapter(teacher), indices):
        raise ValueError(
            f"model.losses.{name} crosses heads, but the teacher's own taps do not give its own predictions: "
            f"{type(teacher.head).__name__}.forward does more than its towers and predictors. Register an Adapter "
            "whose predict() does it too, or choose losses with source='student'."
        )


def check_pairing(student: DenseDetector, teacher: DenseDetector, losses: Mapping[str, DistillationLoss]) -> None:
    """
    Raises:
        ValueError: something that cannot be adapted differs; the message names both values and the config key.
    """
    for what, key, ours, theirs in (
        ("levels of strides", "head_in_features", _strides(student), _strides(teacher)),
        ("classes", "num_classes", student.num_classes, teacher.num_classes),
    ):
        if ours != theirs:
            raise ValueError(
                f"The student has {what} {ours} and the teacher {theirs}: they must agree (model.student.{key}, "
                f"model.teacher.model.{key})."
            )
    difference = _anchor_difference(student, teacher)
    for name, loss in losses.items():
        if not loss.weight:  # off
            continue
        if loss.source == "crossed":
            _check_taps(name, loss.tail, student, teacher)
        elif difference and loss.compares_locations:
            instead = "region='everywhere'" if loss.task == "feature" else "source='crossed'"
            raise ValueError(
                f"model.losses.{name} compares the student's own predictions with the teacher's, but a "
                f"{type(student).__name__} student and a {type(teacher).__name__} teacher of these configs have "
                f"different anchors ({difference}): give them the same (model.student.anchor_generator, "
                f"model.teacher.model.anchor_generator; FCOS: its backbone's strides), or use {instead}."
            )
        teacher_spec = get_adapter(teacher).describe(teacher)
        source_spec = teacher_spec if loss.source == "crossed" else get_adapter(student).describe(student)
        try:
            loss.check_pair(source_spec, teacher_spec)
        except ValueError as error:
            raise ValueError(f"model.losses.{name}: {error}") from error


def warn_of_stacked_terms(losses: Mapping[str, DistillationLoss]) -> None:
    """
    Warn of combinations that lost accuracy, or that papers use one instead of the other: direct and crossed losses on
    one branch (CrossKD's ablation), and two kernels on the same class scores (BCKD's classification loss beside LD's
    or FTPD's). Kernels of one method on the same boxes (FTPD's) say different things of them.
    """
    on = {name: loss for name, loss in losses.items() if loss.weight > 0}
    for source in SOURCES:
        same = {name: type(x).__name__ for name, x in on.items() if (x.task, x.source) == ("cls", source)}
        if len(set(same.values())) > 1:
            logger.warning(
                "%s all compare the %s class scores with the teacher's, by different kernels: take one "
                "(docs/methods.md).",
                ", ".join(f"{name} ({kernel})" for name, kernel in same.items()),
                "crossed" if source == "crossed" else "student's",
            )
    for task in sorted({loss.task for loss in on.values()}):
        names = {s: [name for name, x in on.items() if (x.task, x.source) == (task, s)] for s in SOURCES}
        if all(names.values()):
            logger.warning(
                "%s (source 'student') and %s (source 'crossed') both train the '%s' branch: stacking direct and "
                "crossed terms lost accuracy in CrossKD's ablation (docs/methods.md).",
                ", ".join(names["student"]),
                ", ".join(names["crossed"]),
                task,
            )
