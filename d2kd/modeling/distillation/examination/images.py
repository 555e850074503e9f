"""What a teacher and its student know of labelled images, and what the teacher would with other pixel statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor

from d2kd.modeling.adapters import get_adapter
from d2kd.modeling.detectors.interface import label_anchors_of, num_classes_of, pixel_statistics
from d2kd.modeling.distillation.agreement import raised_on_all_ranks
from d2kd.modeling.distillation.examination.knowledge import Knowledge, read_knowledge
from d2kd.modeling.distillation.examination.pixel_settings import PixelSetting, apply_setting, known_settings, reorder
from d2kd.modeling.distillation.overlap import Overlap
from d2kd.modeling.distillation.student_step import labels_of, predict
from d2kd.modeling.distillation.teacher import Teacher
from d2kd.structures import DenseOutput, kept_random_state, whole_numbers

__all__ = ["KNOWS", "TRIED", "Examination", "examine"]

#: The skill from which a detector knows something of the data: 0.8 of the 0.5 and more that detectors which are of use
#: have on their own training images, those of COCO included.
KNOWS = 0.8 * 0.5

#: Images in one pass: as few as the smallest batches have, so that it takes no more memory than a step.
_CHUNK = 2

#: On how many images of each rank other pixel statistics are tried; the other channel order is on all.
TRIED = 16


@dataclass
class Examination:
    """
    What was seen on some images, of all ranks.

    Attributes:
        teacher, student: what they know, row by row of the same images and classes.
        num_images: how many images there were.
        teacher_classes, student_classes: for each class that both have, its number among their own; of several of the
            teacher's that are merged, the first.
        merged: the others, by the first.
        present: how the teacher's images are made.
        others: the other ways that were tried, on all or some of the images: what the teacher knows then, and what it
            knows of the same images as they are made at present.
    """

    teacher: Knowledge
    student: Knowledge
    num_images: int
    teacher_classes: tuple[int, ...]
    student_classes: tuple[int, ...]
    merged: dict[int, tuple[int, ...]]
    present: PixelSetting
    others: dict[PixelSetting, tuple[Knowledge, Knowledge]]

    @property
    def gap(self) -> float:
        """Mean difference of the two detectors' scores of an object's class, over the objects that both have."""
        theirs = replace(self.teacher, objects=torch.where(self.student.right.isnan(), 0, self.teacher.objects))
        return theirs.mean((self.teacher.score - self.student.score).abs())

    def by_chance(self, knowledge: Knowledge) -> float:
        """Share of objects that get the right class if a detector gives its names by lot, each as often as it does."""
        columns = list(self.student_classes if knowledge is self.student else self.teacher_classes)
        votes = knowledge.votes(len(columns))[:, columns]
        total = votes.sum()
        return float((votes.sum(0) * votes.sum(1)).sum() / total**2) if total else 1 / len(columns)

    def figures(self, knowledge: Knowledge) -> dict[str, float]:
        """What is reported of a detector's knowledge; NaN where no object has a positive."""
        means = {key: knowledge.mean(getattr(knowledge, key)) for key in ("right", "score", "contrast")}
        return {
            "objects": knowledge.num_seen,
            **means,
            "right_by_chance": self.by_chance(knowledge),
            "recall": knowledge.recall,
        }

    def skill(self, knowledge: Knowledge) -> tuple[float, float]:
        """
        Of the objects that chance gets wrong, the share that gets the right class, and twice its standard error. Of one
        class alone: the same of its scores, which are to be above the background's.
        """
        if len(self.teacher_classes) > 1:
            value, chance = knowledge.mean(knowledge.right), self.by_chance(knowledge)
        else:
            value, chance = knowledge.mean(knowledge.contrast), 0.5
        spread, rest = max(value * (1 - value), chance * (1 - chance)), max(1 - chance, 1e-6)
        return (value - chance) / rest, 2 * (spread / max(1, knowledge.num_seen)) ** 0.5 / rest

    @property
    def best_other(self) -> PixelSetting | None:
        """Of the other ways the best, if it is clearly better than the present one; of equals the nearest to it."""
        quality = {
            setting: then.gain(now, "right")[0] + then.gain(now, "contrast")[0]
            for setting, (then, now) in self.others.items()
            if self.skill(then)[0] >= KNOWS and _is_better(then, now)
        }
        equals = [setting for setting, value in quality.items() if value > max(quality.values()) - 0.02]
        return min(equals, key=lambda x: (len(x.beside(self.present)), -quality[x]), default=None)


@dataclass(frozen=True)
class _Scene:
    """Some of the images: as the student preprocesses them, and their objects on its device."""

    items: Sequence[Mapping[str, Any]]
    images: ImageList
    gt_instances: list[Instances]
    common_objects: list[Tensor] | None


def examine(
    student: DenseDetector,
    teacher: Teacher,
    overlap: Overlap,
    items: Sequence[Mapping[str, Any]],
    *,
    input_format: str,
) -> Examination:
    """
    Every rank calls it, with images of its own. Nothing of either detector changes: both run in eval mode, without
    gradient and outside autocast, and the random state is kept.

    Args:
        student: in whatever mode.
        teacher: loaded.
        items: images with labels, as of a batch; none are needed on this rank.
        input_format: their channel order.
    """
    detector = teacher.detector
    mean, std = (tuple(round(x, 4) for x in values.flatten().tolist()) for values in pixel_statistics(detector))
    present = PixelSetting(teacher.input_format, mean, std)
    device = student.device

    def look(scenes: Sequence[_Scene], settings: Sequence[PixelSetting | None]) -> dict[PixelSetting | None, Knowledge]:
        """What the student (None) and the teacher with each setting know of these images, on all ranks."""
        found: dict[PixelSetting | None, Knowledge] = {}
        with raised_on_all_ranks(device):
            for setting in settings:
                parts = [
                    _of_student(student, overlap, scene)
                    if setting is None
                    else _of_teacher(teacher, overlap, scene, input_format, setting, present)
                    for scene in scenes
                ]
                num_classes = num_classes_of(student if setting is None else detector)
                found[setting] = Knowledge.cat([Knowledge.empty(num_classes), *parts])
        ranks = comm.all_gather(found)
        return {setting: Knowledge.cat([rank[setting] for rank in ranks]) for setting in settings}

    autocast = torch.autocast(device.type, enabled=False)
    with kept_random_state(device), torch.no_grad(), autocast, _in_eval(student):
        with raised_on_all_ranks(device):
            scenes = list(_scenes(student, overlap, items))
        num_images = sum(comm.all_gather(len(items)))
        orders = reorder(present)
        tried, rest = scenes[: TRIED // _CHUNK], scenes[TRIED // _CHUNK :]
        some = look(tried, [None, present, *orders, *known_settings(present)])
        whole = {x: Knowledge.cat([some[x], more]) for x, more in look(rest, [None, present, *orders]).items()}

        def beside_present(
            found: Mapping[PixelSetting | None, Knowledge],
        ) -> dict[PixelSetting, tuple[Knowledge, Knowledge]]:
            return {x: (then, found[present]) for x, then in found.items() if x is not None and x != present}

        examination = Examination(
            teacher=whole[present],
            student=whole[None],
            num_images=num_images,
            teacher_classes=overlap.first_teacher_classes or tuple(range(num_classes_of(detector))),
            student_classes=overlap.student_classes or tuple(range(num_classes_of(student))),
            merged={first: tuple(others) for first, *others in overlap.teacher_classes or () if others},
            present=present,
            others={**beside_present(some), **beside_present(whole)},
        )
        best = examination.best_other
        if best is not None:  # with the other order, or other statistics, as well
            tries = reorder(best) if best.input_format == present.input_format else known_settings(best)
            more = look(tried, [x for x in tries if x not in some and not x.is_near(present)])
            examination.others |= beside_present({**more, present: some[present]})
    return examination


def _is_better(other: Knowledge, present: Knowledge) -> bool:
    """
    Whether images made in another way are clearly better understood: more objects get the right class, or the scores
    rise by a tenth at no cost of classes; and objects are told from the background as well (louder images alone raise
    all scores).
    """
    right, right_error = other.gain(present, "right")
    score, score_error = other.gain(present, "score")
    contrast, _ = other.gain(present, "contrast")
    classes = right >= max(0.05, 3 * right_error)
    scores = score >= max(0.03, 0.1 * present.mean(present.score), 3 * score_error)
    return contrast > -0.005 and (classes or (scores and right > -0.01))


def _scenes(student: DenseDetector, overlap: Overlap, items: Sequence[Mapping[str, Any]]) -> Iterator[_Scene]:
    for start in range(0, len(items), _CHUNK):
        some = [{**item, "image": item["image"].to(student.device)} for item in items[start : start + _CHUNK]]
        images = student.preprocess_image(some)
        yield _Scene(some, images, *labels_of(student, images, some, overlap))


def _of_student(student: DenseDetector, overlap: Overlap, scene: _Scene) -> Knowledge:
    prediction = predict(student, scene.images)
    return _read(
        student,
        prediction.output,
        prediction.anchors,
        scene.gt_instances,
        scene.common_objects,
        overlap.student_classes,
    )


def _of_teacher(
    teacher: Teacher,
    overlap: Overlap,
    scene: _Scene,
    input_format: str,
    setting: PixelSetting,
    present: PixelSetting,
) -> Knowledge:
    height, width = scene.images.tensor.shape[-2:]
    step = teacher.run(
        [{"image": apply_setting(item["image"], input_format, setting, present)} for item in scene.items],
        input_format=present.input_format,
        canvas=(height, width),
        levels=range(len(teacher.detector.head_in_features)),
        tap_indices={},
    )
    gt_instances = overlap.in_teacher_classes(scene.gt_instances, scene.common_objects)
    output = _merged(step.output, overlap)
    return _read(teacher.detector, output, step.anchors, gt_instances, None, overlap.first_teacher_classes)


def _merged(output: DenseOutput, overlap: Overlap) -> DenseOutput:
    """The same, where of classes that are merged the first has the score, and the others are never the highest."""
    groups = [ids for ids in overlap.teacher_classes or () if len(ids) > 1]
    if not groups:
        return output
    first = tuple(ids[0] for ids in groups)
    every = tuple(number for ids in groups for number in ids)
    merged = output.merge_classes(groups).logits
    logits = [
        x.index_fill(output.class_dim, whole_numbers(every, x.device), -torch.inf).index_copy(
            output.class_dim, whole_numbers(first, x.device), of_first
        )
        for x, of_first in zip(output.logits, merged, strict=True)
    ]
    return replace(output, logits=logits)


def _read(
    detector: DenseDetector,
    output: DenseOutput,
    anchors: list[Boxes],
    gt_instances: list[Instances],
    common_objects: Sequence[Tensor] | None,
    classes: tuple[int, ...] | None,
) -> Knowledge:
    """What the detector knows of objects that are in its own classes, at the positives of its own assignment."""
    labelled = label_anchors_of(detector)(anchors, gt_instances)
    assignment = get_adapter(detector).assignment(detector, labelled, gt_instances, output.sizes)
    columns = classes or range(num_classes_of(detector))
    return read_knowledge(output, assignment.with_classes(classes, common_objects), columns)


@contextmanager
def _in_eval(detector: DenseDetector) -> Iterator[None]:
    """Inside, its modules are in eval mode; not by ``eval()``, which modules may override, so as to undo it exactly."""
    before = {module: module.training for module in detector.modules()}
    try:
        for module in before:
            module.training = False
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
