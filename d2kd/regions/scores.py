"""Regions made of labels and class scores."""

from __future__ import annotations

import torch
from torch import Tensor

from d2kd.regions.base import REGION_REGISTRY, check_bool, label_free, max_score
from d2kd.structures import Assignment, DenseOutput


@torch.no_grad()
def labelled_locations(labels: Tensor) -> Tensor:
    """
    1 where a location takes part in the detector's own classification loss, 0 where its label is ignored (-1).

        >>> labelled_locations(torch.tensor([-1, 0, 3]))
        tensor([0., 1., 1.])

    Args:
        labels: integers of any shape: -1 = ignored, 0..K-1 = class, K = background.

    Returns:
        weights of the same shape.
    """
    return (labels >= 0).float()


@torch.no_grad()
def teacher_confidence(teacher_logits: Tensor, *, centerness: Tensor | None = None, dim: int = -1) -> Tensor:
    """
    The teacher's largest class score, max_c sigma(t_c): CrossKD's weight of the box term (from their code; the
    paper's S(r) is 1). With centerness u the score that FCOS ranks its detections by, sqrt(max_c sigma(t_c) sigma(u)):
    together the teacher quality q of FTPD (after Song et al., reconstructed: no text of the paper gives a weight).

        >>> teacher_confidence(torch.tensor([[0.0, -1], [-3, -4]]))
        tensor([0.5000, 0.0474])

    Args:
        teacher_logits: logits with the class axis ``dim``.
        centerness: the teacher's centerness logits, the shape without the class axis; None: without.

    Returns:
        weights in [0, 1], the inputs' shape without the class axis.
    """
    confidence = max_score(teacher_logits, dim)
    return confidence if centerness is None else confidence.mul_(centerness.float().sigmoid()).sqrt_()


def teacher_confidences(teacher: DenseOutput, centerness: bool) -> list[Tensor]:
    """:func:`teacher_confidence` of each level, (N, A, H, W); ``centerness``: if the teacher predicts it."""
    branch = teacher.centerness if centerness else None
    if branch is None:
        return [teacher_confidence(logits, dim=teacher.class_dim) for logits in teacher.logits]
    return [
        teacher_confidence(logits, centerness=level, dim=teacher.class_dim)
        for logits, level in zip(teacher.logits, branch)
    ]


@torch.no_grad()
def classification_gap(source_logits: Tensor, teacher_logits: Tensor, *, dim: int = -1) -> Tensor:
    """
    max_c |sigma(t_c) - sigma(z_c)|: BCKD's weight of the localisation term (L_loc).

        >>> classification_gap(torch.tensor([[0.0, -2], [1, 1]]), torch.tensor([[0.0, 2], [1, 1]]))
        tensor([0.7616, 0.0000])

    Args:
        source_logits, teacher_logits: logits of one shape, with the class axis ``dim``.

    Returns:
        weights in [0, 1], the inputs' shape without the class axis.
    """
    gap = teacher_logits.float().sigmoid()
    return gap.sub_(source_logits.float().sigmoid()).abs_().amax(dim)


@torch.no_grad()
def main_region(labels: Tensor, student_logits: Tensor, *, num_classes: int, dim: int = -1) -> Tensor:
    """
    The student's largest class score, max_k sigma(z_k), at locations that carry an object's label; 0 elsewhere: LD's
    main distillation region with its weight w_i. The largest over all classes, not that of the object's class, and the
    student's, as GFL weighs its own box losses (from LD's code; its authors tried no other).

        >>> main_region(torch.tensor([0, 1, -1]), torch.tensor([[-1.0], [2], [2]]), num_classes=1)
        tensor([0.2689, 0.0000, 0.0000])

    Args:
        labels: integers: -1 = ignored, 0..K-1 = class, K = background.
        student_logits: logits of the labels' shape with one more axis, the class axis ``dim``.
        num_classes: K.

    Returns:
        weights in [0, 1], of the labels' shape.
    """
    return max_score(student_logits, dim) * ((labels >= 0) & (labels != num_classes))


@REGION_REGISTRY.register()
@label_free
def everywhere(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """
    1 at every location, also at those that the assignment ignores and in padding: for means over all cells, such as
    PKD's.
    """
    return [torch.ones_like(labels, dtype=torch.float32) for labels in assignment.labels]


@REGION_REGISTRY.register()
@label_free
def all_locations(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """Every location that the assignment does not ignore."""
    return [labelled_locations(labels) for labels in assignment.labels]


@REGION_REGISTRY.register()
def positives(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """The locations that carry an object's label."""
    return [positive.float() for positive in assignment.positives]


@REGION_REGISTRY.register()
def main(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """:func:`main_region` of the source."""
    return [
        main_region(labels, logits, num_classes=assignment.num_classes, dim=source.class_dim)
        for labels, logits in zip(assignment.labels, source.logits)
    ]


@REGION_REGISTRY.register()
@label_free
def teacher_quality(
    source: DenseOutput, teacher: DenseOutput, assignment: Assignment, *, centerness: bool = False
) -> list[Tensor]:
    """
    :func:`teacher_confidence` of every location that the assignment does not ignore; with centerness where
    ``centerness`` is true and the teacher predicts it. CrossKD's is without.
    """
    check_bool("centerness", centerness)
    return [
        quality * labelled_locations(labels)
        for quality, labels in zip(teacher_confidences(teacher, centerness), assignment.labels)
    ]


@REGION_REGISTRY.register()
@label_free
def gap(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """:func:`classification_gap` of every location that the assignment does not ignore."""
    return [
        classification_gap(source_logits, teacher_logits, dim=teacher.class_dim) * labelled_locations(labels)
        for source_logits, teacher_logits, labels in zip(source.logits, teacher.logits, assignment.labels)
    ]
