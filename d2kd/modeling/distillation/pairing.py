"""What must agree between one student, one teacher and one loss; checked before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from d2kd.losses import SOURCES, DistillationLoss
from d2kd.modeling.adapters import crosses_itself, get_adapter, tap_channels, tap_index
from d2kd.modeling.detectors.interface import num_classes_of, pixel_statistics, strides_of
from d2kd.modeling.distillation.overlap import Overlap, find_overlap

__all__ = ["check_pairing", "warn_of_stacked_terms"]

# Below Detectron2's logger: whichever trainer runs has set that one up.
logger = logging.getLogger(f"detectron2.{__name__}")


def _head_in_channels(detector: DenseDetector) -> int:
    return detector.backbone.output_shape()[detector.head_in_features[0]].channels


def _check_taps(name: str, tail: int, student: DenseDetector, teacher: DenseDetector) -> dict[str, tuple[int, int]]:
    """See that a loss can cross these heads; for each branch, the channels of the student's and the teacher's taps."""
    student_towers = get_adapter(student).towers(student.head)
    teacher_towers = get_adapter(teacher).towers(teacher.head)
    if student_towers.keys() != teacher_towers.keys():
        raise ValueError(
            f"model.losses.{name} crosses heads, but the student's head has the towers {sorted(student_towers)} and "
            f"the teacher's {sorted(teacher_towers)}: choose losses with source='student'."
        )
    widths: dict[str, tuple[int, int]] = {}
    for branch in teacher_towers:
        for who, towers in (("student", student_towers), ("teacher", teacher_towers)):
            depth = len(towers[branch])
            if tail > depth:
                raise ValueError(
                    f"model.losses.{name} has tail={tail}, but the '{branch}' tower of the {who}'s head has {depth} "
                    f"blocks: set model.losses.{name}.tail to {depth} or less."
                )
        ours, theirs = (
            tap_channels(towers[branch], tap_index(detector, branch, tail), _head_in_channels(detector))
            for detector, towers in ((student, student_towers), (teacher, teacher_towers))
        )
        widths[branch] = ours, theirs
    indices = {branch: tap_index(teacher, branch, tail) for branch in teacher_towers}
    if not crosses_itself(teacher, get_adapter(teacher), indices):
        raise ValueError(
            f"model.losses.{name} crosses heads, but the teacher's own taps do not give its own predictions: "
            f"{type(teacher.head).__name__}.forward does more than its towers and predictors. Register an Adapter "
            "whose predict() does it too, or choose losses with source='student'."
        )
    return widths


def _check_widths(
    widths: Mapping[tuple[str, int, str], tuple[int, int]], tap_projector_channels: Sequence[int] | None
) -> None:
    """
    Args:
        widths: for each loss, its tail and each branch, the channels of the student's and the teacher's taps.
        tap_projector_channels: see :func:`check_pairing`.
    """
    projected = None if tap_projector_channels is None else tuple(tap_projector_channels)
    for (name, tail, branch), (ours, theirs) in widths.items():
        if (projected is None and ours == theirs) or projected == (ours, theirs):
            continue
        found = (
            f"model.losses.{name} (tail={tail}) sends the student's {ours} channels of the '{branch}' tower into the "
            f"teacher's head, which takes {theirs} there"
        )
        same = (
            "give both heads the same width (model.student.head.conv_dims, or the FPN's out_channels where the tap is "
            "the head's input)"
        )
        if projected is not None:
            found = f"model.tap_projector_channels is {list(projected)}, but {found}"
        if len(set(widths.values())) > 1:
            others = " and ".join(str(list(pair)) for pair in sorted(set(widths.values())))
            raise ValueError(
                f"{found}. One pair of widths must fit all crossed losses and branches, but they have {others}: "
                f"{same}, or one tail to all crossed losses (model.losses.NAME.tail)."
            )
        if projected is not None:
            raise ValueError(f"{found}: set it to {[ours, theirs]}" + (", or null." if ours == theirs else "."))
        raise ValueError(
            f"{found}: set model.tap_projector_channels={[ours, theirs]} to train a projector, a 1x1 convolution, "
            f"between them, or {same}."
        )


def check_pairing(
    student: DenseDetector,
    teacher: DenseDetector,
    losses: Mapping[str, DistillationLoss],
    *,
    class_map: Mapping[int, int] | None = None,
    tap_projector_channels: Sequence[int] | None = None,
    input_formats: tuple[str, str] = ("BGR", "BGR"),
) -> Overlap:
    """
    Args:
        class_map: teacher class id -> student class id; None: the same ids.
        tap_projector_channels: what the projectors of the taps take and give; None: there are none.
        input_formats: of the student's images and the teacher's.

    Returns:
        the levels and classes in which the losses compare them.

    Raises:
        ValueError: the three do not go together; the message names both values and the config key.
        TypeError: a class map that is none.
    """
    _check_channels(student, teacher, *input_formats)
    overlap = find_overlap(student, teacher, class_map)
    num_classes = num_classes_of(student) if overlap.student_classes is None else len(overlap.student_classes)
    _check_squares(student, teacher)
    widths: dict[tuple[str, int, str], tuple[int, int]] = {}
    for name, loss in losses.items():
        if not loss.weight:  # off
            continue
        if loss.source == "crossed":
            taps = _check_taps(name, loss.tail, student, teacher)
            widths |= {(name, loss.tail, branch): pair for branch, pair in taps.items()}
        elif not overlap.same_anchors and loss.reads_predictions:
            instead = "region='everywhere'" if loss.task == "feature" else "source='crossed'"
            raise ValueError(
                f"model.losses.{name} compares the student's own predictions with the teacher's, but a "
                f"{type(student).__name__} student and a {type(teacher).__name__} teacher of these configs have "
                f"different anchors ({overlap.anchor_difference}): give them the same (model.student.anchor_generator, "
                f"model.teacher.model.anchor_generator; FCOS: its backbone's strides), or use {instead}."
            )
        teacher_spec = replace(get_adapter(teacher).describe(teacher), num_classes=num_classes)
        student_spec = replace(get_adapter(student).describe(student), num_classes=num_classes)
        source_spec = teacher_spec if loss.source == "crossed" else student_spec
        try:
            loss.check_pair(source_spec, teacher_spec)
        except ValueError as error:
            hint = ""
            if loss.source == "crossed" and student_spec.family != teacher_spec.family:
                hint = (
                    f" A crossed output is in the teacher's coding: take the preset of {teacher_spec.family}, losses="
                    f"d2kd.methods.get_losses(METHOD, '{student_spec.family}', teacher='{teacher_spec.family}') (in a "
                    f"yacs config: MODEL.DISTILLATION.TEACHER_FAMILY: {teacher_spec.family})."
                )
            raise ValueError(f"model.losses.{name}: {error}{hint}") from error
    _check_widths(widths, tap_projector_channels)
    _log_overlap(student, teacher, overlap)
    return overlap


def _check_channels(student: DenseDetector, teacher: DenseDetector, ours: str, theirs: str) -> None:
    """The teacher sees the student's images: with the same channels, in the same order or as BGR for RGB."""
    counts = [len(pixel_statistics(x)[0]) for x in (student, teacher)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"The channels of the student's images are {counts[0]} (model.student.pixel_mean) and of the teacher's "
            f"{counts[1]} (model.teacher.model.pixel_mean), but both see the same images: take a teacher of as many."
        )
    if ours != theirs and not ({ours, theirs} == {"BGR", "RGB"} and counts[0] == 3):
        raise ValueError(
            f"The student's images are {ours!r} with {counts[0]} channels (model.input_format) and the teacher's "
            f"{theirs!r} (model.teacher.input_format): only BGR and RGB of three channels are made of each other."
        )


def _check_squares(student: DenseDetector, teacher: DenseDetector) -> None:
    """Where both pad to squares; a student that does not may meet too large a canvas in any step."""
    ours, theirs = (x.backbone.padding_constraints.get("square_size", 0) for x in (student, teacher))
    if 0 < theirs < ours:
        raise ValueError(
            f"The student pads to squares of {ours} pixels and the teacher to squares of {theirs}: the teacher's must "
            "be as large (model.student.backbone.square_pad, model.teacher.model.backbone.square_pad)."
        )


def _log_overlap(student: DenseDetector, teacher: DenseDetector, overlap: Overlap) -> None:
    """Say what is left out, if anything is."""
    ours, theirs = strides_of(student), strides_of(teacher)
    if ours != theirs:
        common = [ours[level] for level in overlap.student_levels]
        logger.info("Distilled on levels of strides %s: the student has %s, the teacher %s.", common, ours, theirs)
    if overlap.student_classes is not None and overlap.teacher_classes is not None:
        pairs = zip(overlap.teacher_classes, overlap.student_classes)
        logger.info(
            "Distilled on %d classes, of the student's %d and the teacher's %d: teacher id -> student id %s.",
            len(overlap.student_classes),
            num_classes_of(student),
            num_classes_of(teacher),
            ", ".join(f"{' + '.join(map(str, ids))} -> {s}" for ids, s in pairs),
        )


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
