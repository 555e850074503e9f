"""What an examination of the teacher means, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from d2kd.modeling.distillation.examination.class_order import find_class_order
from d2kd.modeling.distillation.examination.images import KNOWS, Examination
from d2kd.modeling.distillation.examination.knowledge import Knowledge

__all__ = ["LEAST_OBJECTS", "Verdict", "judge"]

#: No verdict on fewer objects: the bounds of what is measured would say nothing.
LEAST_OBJECTS = 20

#: The skill, 0 at chance and 1 without error, up to which a teacher knows nothing.
NOTHING = 0.25

#: Present accuracy over that with other pixels, below which training stops.
FAR_BELOW = 0.8

_OFF = "model.teacher.preflight=off (in a yacs config: TEACHER_PREFLIGHT=False) trains all the same."


@dataclass
class Verdict:
    """
    Attributes:
        summary: what was measured, in one sentence.
        stop: why no run should be spent on this teacher; None: there is no reason.
        warnings: what else to look at.
    """

    summary: str
    stop: str | None = None
    warnings: list[str] = field(default_factory=list)


def judge(
    examination: Examination,
    *,
    has_class_map: bool = False,
    initial_norms: int = 0,
    names: Sequence[str] | None = None,
) -> Verdict:
    """
    Args:
        has_class_map: whether ``model.teacher.class_map`` is set.
        initial_norms: how many of the teacher's batch norms have the statistics that they were made with.
        names: of the student's classes.
    """
    seen = examination.teacher.num_seen
    verdict = Verdict(
        f"On {examination.num_images} images the teacher {_describe(examination.teacher, examination)}; the student "
        f"{_describe(examination.student, examination)}; gap {examination.gap:.2f}."
    )
    if seen < LEAST_OBJECTS:
        verdict.summary = (
            f"No verdict on the teacher: {seen} labelled objects were seen on {examination.num_images} images, fewer "
            f"than {LEAST_OBJECTS}."
        )
        return verdict
    order, gained = _another_order(examination, has_class_map, names)
    pixels, accuracy = _other_pixels(examination)
    if order and pixels:  # colours that are classes: what explains more
        order, pixels = (order, None) if gained >= accuracy - 0.02 else (None, pixels)
    reason = order or pixels
    if pixels and not _is_far_better(examination):
        verdict.warnings.append(pixels)
        reason = None
    reason = reason or _nothing(examination, initial_norms)
    if reason:
        verdict.stop = f"{reason} {_OFF}"
    else:
        verdict.warnings += [x for x in (_poor(examination, initial_norms), _behind(examination)) if x is not None]
    return verdict


def _describe(knowledge: Knowledge, examination: Examination) -> str:
    """Its figures, as the end of a sentence that begins with the detector."""
    if not knowledge.num_seen:
        return "has no location that answers for one of their objects"
    known = examination.figures(knowledge)
    return (
        f"gives {known['right']:.2f} of {known['objects']} objects the right class "
        f"({known['right_by_chance']:.2f} by chance), with a mean score of {known['score']:.2f}, "
        f"{known['contrast']:.2f} of the time above the background's (0.50 by chance), and finds "
        f"{known['recall']:.2f} of them (IoU 0.5)"
    )


def _another_order(
    examination: Examination, has_class_map: bool, names: Sequence[str] | None
) -> tuple[str | None, float]:
    """The sentence, and the share of objects in the right class with that order."""
    columns, students = examination.teacher_classes, examination.student_classes
    votes = examination.teacher.votes(len(columns))
    order = find_class_order(votes, columns)
    if order is None:
        return None, 0.0

    def name(row: int) -> str:
        return f"{students[row]} ({names[students[row]]})" if names else f"{students[row]}"

    def share(of: dict[int, int]) -> float:
        return float(sum(votes[row, column] for row, column in of.items()) / votes.sum())

    moved = [row for row, column in order.items() if column != columns[row]]
    told = ", ".join(f"{name(row)} by its class {order[row]}" for row in moved[:8]) + (", ..." if moved[8:] else "")
    pairs = ",".join(
        f"{number}:{students[row]}"
        for row, column in sorted(order.items(), key=lambda x: x[1])
        for number in (column, *examination.merged.get(column, ()))
    )
    first = "model.teacher.class_map=null " if has_class_map else ""
    left = [name(row) for row in range(len(columns)) if row not in order]
    sentence = (
        f"The teacher's classes have another order than the labels': it names objects of class {told}. With "
        f'{first}"model.teacher.class_map={{{pairs}}}" it gives {share(order):.2f} of them the right class, now '
        f"{share(dict(enumerate(columns))):.2f} (in a yacs config: MODEL.DISTILLATION.CLASS_MAP)"
        + (f"; class {', '.join(left)} was seen too seldom to be placed: add it." if left else ".")
    )
    return sentence, share(order)


def _other_pixels(examination: Examination) -> tuple[str | None, float]:
    """The sentence, and the share of objects in the right class with those pixels."""
    best = examination.best_other
    if best is None:
        return None, 0.0
    then, now = map(examination.figures, examination.others[best])
    sentence = (
        f"The teacher knows these images better with {' '.join(best.beside(examination.present))} than with "
        f"{' '.join(examination.present.beside(best))}: {then['right']:.2f} of {then['objects']} objects get the right "
        f"class and a mean score of {then['score']:.2f}, now {now['right']:.2f} and {now['score']:.2f}. Set what it "
        "was trained with, in model.teacher.model or its own config file (the order, where its class has none: "
        "model.teacher.input_format)."
    )
    return sentence, then["right"]


def _is_far_better(examination: Examination) -> bool:
    """Whether with the best other pixels the teacher knows so much more that the present ones are no choice."""
    best = examination.best_other
    if best is None:
        return False
    key = "right" if len(examination.teacher_classes) > 1 else "score"
    then, now = (examination.figures(x)[key] for x in examination.others[best])
    return now < FAR_BELOW * then


def _nothing(examination: Examination, initial_norms: int) -> str | None:
    teacher = examination.teacher
    skill, bound = examination.skill(teacher)
    # Few objects leave the classes open; what is scored above the background is then the second witness.
    at_chance = skill <= bound and teacher.mean(teacher.contrast) < FAR_BELOW
    # Without other classes to take an object for, a network that was not trained may still tell objects by their edges.
    finds_none = len(examination.teacher_classes) == 1 and teacher.recall + 2 / teacher.num_seen < 0.1
    if skill + bound >= NOTHING and not at_chance and not finds_none:
        return None
    return (
        f"The teacher is about as good as chance on this data: it {_describe(teacher, examination)}."
        f"{_norms(initial_norms)} Check that "
        "model.teacher.checkpoint is the trained file, trained on these classes and such images."
    )


def _norms(initial: int) -> str:
    return f" {initial} of its batch norms have the statistics of a new network." if initial else ""


def _poor(examination: Examination, initial_norms: int) -> str | None:
    skill, _ = examination.skill(examination.teacher)
    if skill >= KNOWS and examination.teacher.recall >= KNOWS:
        return None
    return (
        f"The teacher knows little of this data: it {_describe(examination.teacher, examination)}."
        f"{_norms(initial_norms)} Detectors that teach something get more than half right of what chance gets wrong: "
        "look at its detections (check.png of d2kd check) and its AP (d2kd train --check-teacher)."
    )


def _behind(examination: Examination) -> str | None:
    key = "right" if len(examination.teacher_classes) > 1 else "score"
    lead, error = examination.student.gain(examination.teacher, key)
    if lead < max(0.05, 3 * error):
        return None
    return (
        f"The student knows more of this data than its teacher: it {_describe(examination.student, examination)}; the "
        f"teacher {_describe(examination.teacher, examination)}. Distillation would pull it back: train it without "
        "(model.losses=null), or with a better teacher."
    )
