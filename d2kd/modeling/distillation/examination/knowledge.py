"""What a detector knows of labelled images: its classes, scores and boxes at their objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from d2kd.structures import Assignment, DenseOutput, iou

__all__ = ["Knowledge", "read_knowledge"]

#: An object is found by a box of at least this IoU and score, of the object's class.
FOUND_IOU, FOUND_SCORE = 0.5, 0.05

#: Background locations of an image with whose scores those of its positives are compared.
_BACKGROUND = 256


@dataclass
class Knowledge:
    """
    What a detector says of the objects of some images, on the host in float64: a row for each image and each class of
    its objects, U rows in all. Rows weigh as many as they have objects, whatever their numbers of positives.

    Attributes:
        classes: (U,) the class, numbered as in the common classes.
        objects: (U,) how many objects of that class the image has.
        right: (U,) share of their positives at which the class has the highest score of the common ones; NaN where
            they have no positive.
        score: (U,) mean score of the class at these positives; NaN likewise.
        contrast: (U,) how often a positive has a higher score of the class than a background location of the image
            (the area under the ROC curve; 0.5 is chance); NaN likewise.
        found: (U,) how many of the objects have a box of their class, see FOUND_IOU and FOUND_SCORE.
        named: (U, K) share of the positives at which each of the detector's own classes has the highest score of all.
    """

    classes: Tensor
    objects: Tensor
    right: Tensor
    score: Tensor
    contrast: Tensor
    found: Tensor
    named: Tensor

    @classmethod
    def empty(cls, num_classes: int) -> Knowledge:
        """Of no images, by a detector with ``num_classes`` classes."""
        none = torch.zeros(0, dtype=torch.float64)
        return cls(none, none, none, none, none, none, named=torch.zeros(0, num_classes, dtype=torch.float64))

    @classmethod
    def cat(cls, parts: Sequence[Knowledge]) -> Knowledge:
        """The rows of all parts."""
        return cls(**{x.name: torch.cat([getattr(part, x.name) for part in parts]) for x in fields(cls)})

    @property
    def seen(self) -> Tensor:
        """(U,) the weights of the rows that have positives, others 0."""
        return torch.where(self.right.isnan(), 0, self.objects)

    def mean(self, values: Tensor) -> float:
        """Of (U,) values, over the objects that have positives; NaN without any."""
        weights = self.seen
        return float((values.nan_to_num() * weights).sum() / weights.sum())

    @property
    def num_seen(self) -> int:
        """How many objects have positives."""
        return int(self.seen.sum())

    def gain(self, other: Knowledge, key: str) -> tuple[float, float]:
        """
        By how much the mean of ``key`` is larger here than in ``other``, and the standard error of that, over the
        objects that have positives in both: each object is compared with itself.
        """
        weights = torch.where(other.right.isnan(), 0, self.seen)
        total = weights.sum().clamp(min=1)
        differences = (getattr(self, key) - getattr(other, key)).nan_to_num()
        mean = (weights * differences).sum() / total
        error = (weights.square() * (differences - mean).square()).sum().sqrt() / total
        return float(mean), float(error)

    @property
    def recall(self) -> float:
        """Share of the objects that are found."""
        return float(self.found.sum() / self.objects.sum())

    def votes(self, num_common: int) -> Tensor:
        """(C, K) how many objects of each common class get the name of each of the detector's own classes."""
        table = torch.zeros(num_common, self.named.shape[1], dtype=self.named.dtype)
        return table.index_add_(0, self.classes.long(), self.named * self.seen[:, None])


def read_knowledge(output: DenseOutput, assignment: Assignment, columns: Sequence[int]) -> Knowledge:
    """
    Args:
        output: with all of the detector's own classes, K.
        assignment: the labels of its anchors, in the C common classes.
        columns: for each common class its number among the detector's own.
    """
    rows: list[list[float]] = []
    named: list[Tensor] = []
    num_common, class_dim = len(columns), output.class_dim - 1  # of an image's own maps
    own = torch.tensor(list(columns), device=output.logits[0].device)
    for index, (boxes, classes) in enumerate(zip(assignment.gt_boxes, assignment.gt_classes)):
        if not len(classes):
            continue
        scores = torch.cat([x[index].movedim(class_dim, -1).flatten(0, -2) for x in output.logits]).float().sigmoid()
        labels = torch.cat([x[index].flatten() for x in assignment.labels])
        valid = torch.cat([x[index].flatten() for x in assignment.valid])
        decoded = torch.cat([x[index].flatten(0, -2) for x in output.boxes])
        common = scores[:, own]
        best, best_own = common.argmax(1), scores.argmax(1)
        background = ((labels == num_common) & valid).nonzero().flatten()
        background = background[:: max(1, len(background) // _BACKGROUND)]
        for number in classes.unique().tolist():
            of_class = boxes[classes == number]
            candidates = ((best == number) & (common[:, number] >= FOUND_SCORE)).nonzero().flatten()
            near = iou(decoded[candidates, None], of_class[None]) >= FOUND_IOU
            positive = (labels == number).nonzero().flatten()
            score = common[positive, number]
            others = common[background, number]
            above = (score[:, None] > others).float() + (score[:, None] == others).float() / 2
            figures = torch.stack([(best[positive] == number).float().mean(), score.mean(), above.mean()])
            rows.append([number, len(of_class), *figures.tolist(), int(near.any(0).sum())])
            counts = torch.bincount(best_own[positive].cpu(), minlength=scores.shape[1])
            named.append(counts.double() / max(1, len(positive)))
    num_classes = output.logits[0].shape[output.class_dim]
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 6)
    stacked = torch.stack(named) if named else torch.zeros(0, num_classes, dtype=torch.float64)
    classes, objects, right, score, contrast, found = table.unbind(1)
    return Knowledge(classes, objects, right, score, contrast, found, named=stacked)
