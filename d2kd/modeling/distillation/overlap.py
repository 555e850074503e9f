"""The levels and classes that a student and its teacher have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from torch import Tensor

from d2kd.modeling.detectors.interface import make_anchors, num_classes_of, strides_of
from d2kd.structures import whole_numbers

__all__ = ["Overlap", "find_overlap"]


@dataclass(frozen=True)
class Overlap:
    """
    The levels and classes in which student and teacher are compared; all losses see these alone.

    Attributes:
        student_levels, teacher_levels: indices of the levels that both have, in the student's order.
        student_classes: the student's id of each class that both have; None: all, with the same ids for both.
        teacher_classes: the teacher's id of each of them, or its several ids, which are merged; None: likewise.
        anchor_difference: the first difference between their anchors on these levels, in words; None without any.
    """

    student_levels: tuple[int, ...]
    teacher_levels: tuple[int, ...]
    student_classes: tuple[int, ...] | None
    teacher_classes: tuple[tuple[int, ...], ...] | None
    anchor_difference: str | None

    @property
    def same_anchors(self) -> bool:
        """Whether both put the same anchors on the same cells of these levels."""
        return self.anchor_difference is None

    @property
    def first_teacher_classes(self) -> tuple[int, ...] | None:
        """Of :attr:`teacher_classes` the first id of each, which stands for the others in labels."""
        return None if self.teacher_classes is None else tuple(ids[0] for ids in self.teacher_classes)

    def common_objects(self, gt_classes: Sequence[Tensor], device: torch.device) -> list[Tensor] | None:
        """
        Which objects are of the classes that both have.

        Args:
            gt_classes: of each image, (G,) class ids of the student's; on the host, so that it does not wait.
            device: of what is returned.

        Returns:
            of each image, their indices; None: all are.
        """
        if self.student_classes is None:
            return None
        common = torch.tensor(self.student_classes)
        kept = [torch.isin(classes.cpu(), common).nonzero().flatten() for classes in gt_classes]
        return list(torch.cat(kept).to(device, non_blocking=True).split([len(x) for x in kept]))

    def in_teacher_classes(
        self, gt_instances: Sequence[Instances], common_objects: Sequence[Tensor] | None
    ) -> list[Instances]:
        """The :meth:`common_objects` of each image, with :attr:`first_teacher_classes`."""
        if self.student_classes is None or self.first_teacher_classes is None or common_objects is None:
            return list(gt_instances)
        teacher_id = dict(zip(self.student_classes, self.first_teacher_classes))
        ids = tuple(teacher_id.get(i, -1) for i in range(max(self.student_classes) + 1))
        renamed = []
        for instances, kept in zip(gt_instances, common_objects, strict=True):
            known = instances[kept]  # type: ignore[index]  # Detectron2 names no indices there, and takes them
            known.gt_classes = whole_numbers(ids, kept.device)[known.gt_classes]
            renamed.append(known)
        return renamed


def find_overlap(student: DenseDetector, teacher: DenseDetector, class_map: Mapping[int, int] | None = None) -> Overlap:
    """
    Args:
        class_map: teacher class id -> student class id, several to one if need be; None: the same ids.

    Raises:
        ValueError: no level of one stride, other numbers of classes without a map, or a map that does not fit; the
            message names both values and the config key.
        TypeError: a map that is none.
    """
    ours, theirs = strides_of(student), strides_of(teacher)
    common = [stride for stride in ours if stride in theirs]
    if not common:
        raise ValueError(
            f"The student has levels of strides {ours} and the teacher {theirs}: they must have one in common "
            "(model.student.head_in_features, model.teacher.model.head_in_features)."
        )
    levels = tuple(ours.index(stride) for stride in common), tuple(theirs.index(stride) for stride in common)
    classes = _match_classes(num_classes_of(student), num_classes_of(teacher), class_map)
    return Overlap(*levels, *classes, anchor_difference=_anchor_difference(student, teacher, *levels))


def _anchor_difference(
    student: DenseDetector, teacher: DenseDetector, student_levels: Sequence[int], teacher_levels: Sequence[int]
) -> str | None:
    """The first difference between the anchors of a 2x2 map of each of these levels; None without any."""
    boxes = []
    for detector, levels in ((student, student_levels), (teacher, teacher_levels)):
        maps = [torch.zeros(1, 1, 2, 2, device=detector.device) for _ in detector.head_in_features]
        anchors = make_anchors(detector, maps)
        boxes.append([anchors[level].tensor for level in levels])
    for level, ours, theirs in zip(student_levels, *boxes):
        if ours.shape != theirs.shape:
            return f"{len(ours) // 4} and {len(theirs) // 4} a cell of level {level}"
        for a, b in zip(ours.tolist(), theirs.tolist()):
            if a != b:
                return f"{a} and {b} on level {level}"
    return None


def _match_classes(
    ours: int, theirs: int, class_map: Mapping[int, int] | None
) -> tuple[tuple[int, ...] | None, tuple[tuple[int, ...], ...] | None]:
    """The student's and the teacher's ids of the common classes, by the student's; (None, None): all, as they are."""
    if class_map is None:
        if ours != theirs:
            raise ValueError(
                f"The student has {ours} classes and the teacher {theirs}: give both the same (model.student."
                "num_classes, model.teacher.model.num_classes), or say which of the teacher's are which of the "
                "student's: model.teacher.class_map={teacher id: student id}."
            )
        return None, None
    if not isinstance(class_map, Mapping):
        raise TypeError(f"model.teacher.class_map is {class_map!r}, expected a mapping of teacher ids to student ids.")
    if not class_map:
        raise ValueError("model.teacher.class_map is empty: no class would be distilled.")
    for teacher_id, student_id in class_map.items():
        for who, value, count in (("teacher", teacher_id, theirs), ("student", student_id, ours)):
            if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= value < count:
                raise ValueError(
                    f"model.teacher.class_map has {teacher_id!r}: {student_id!r}, but the {who}'s classes are the "
                    f"whole numbers from 0 to {count - 1}."
                )
    by_student: dict[int, list[int]] = {}
    for teacher_id, student_id in class_map.items():
        by_student.setdefault(int(student_id), []).append(int(teacher_id))
    pairs = sorted((student_id, tuple(sorted(teacher_ids))) for student_id, teacher_ids in by_student.items())
    if pairs == [(i, (i,)) for i in range(ours)] and ours == theirs:
        return None, None
    return tuple(s for s, _ in pairs), tuple(t for _, t in pairs)
