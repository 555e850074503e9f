"""
Regions: where to distil, as one detached weight a location.

Pure functions on tensors first; the registered ones below read them off dense outputs, level by level. Torch and
fvcore only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from fvcore.common.registry import Registry
from torch import Tensor

if TYPE_CHECKING:  # dense outputs are duck-typed here: this module must not need detectron2
    from d2kd.modeling.dense_output import Assignment, DenseOutput

__all__ = ["REGION_REGISTRY", "classification_gap", "teacher_confidence", "valid_locations"]


@torch.no_grad()
def valid_locations(labels: Tensor) -> Tensor:
    """
    1 where a location takes part in the detector's own classification loss, 0 where its label is ignored (-1).

    Args:
        labels: integers of any shape: -1 = ignored, 0..K-1 = class, K = background.

    Returns:
        float32 weights of the same shape.
    """
    return (labels >= 0).float()


@torch.no_grad()
def teacher_confidence(teacher_logits: Tensor, *, dim: int = -1) -> Tensor:
    """
    The teacher's largest class score, max_c sigma(t_c): CrossKD's weight of the box term (from their code; the
    paper's S(r) is 1).

    Args:
        teacher_logits: logits with the class axis ``dim``.

    Returns:
        float32 weights in [0, 1], the inputs' shape without the class axis.
    """
    return teacher_logits.amax(dim).float().sigmoid()


@torch.no_grad()
def classification_gap(source_logits: Tensor, teacher_logits: Tensor, *, dim: int = -1) -> Tensor:
    """
    max_c |sigma(t_c) - sigma(z_c)|, both detached: BCKD's weight of the localisation term (L_loc).

    Args:
        source_logits, teacher_logits: logits of one shape, with the class axis ``dim``.

    Returns:
        float32 weights in [0, 1], the inputs' shape without the class axis.
    """
    gap = teacher_logits.float().sigmoid()
    return gap.sub_(source_logits.float().sigmoid()).abs_().amax(dim)


REGION_REGISTRY = Registry("REGION")
REGION_REGISTRY.__doc__ = """
Registry for regions: ``f(source, teacher, assignment) -> per level, detached weights of shape (N, A, H, W)``, where
source and teacher are dense outputs in the same anchors and assignment holds the labels of those anchors.
"""


@REGION_REGISTRY.register()
def all_locations(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """Every location that the assignment does not ignore."""
    return [valid_locations(labels) for labels in assignment.labels]


@REGION_REGISTRY.register()
def positives(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """The locations that carry an object's label."""
    return [positive.float() for positive in assignment.positives]


@REGION_REGISTRY.register()
def teacher_quality(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """:func:`teacher_confidence` of every location that the assignment does not ignore."""
    return [
        teacher_confidence(logits, dim=teacher.class_dim) * valid_locations(labels)
        for logits, labels in zip(teacher.logits, assignment.labels)
    ]


@REGION_REGISTRY.register()
def gap(source: DenseOutput, teacher: DenseOutput, assignment: Assignment) -> list[Tensor]:
    """:func:`classification_gap` of every location that the assignment does not ignore."""
    return [
        classification_gap(source_logits, teacher_logits, dim=teacher.class_dim) * valid_locations(labels)
        for source_logits, teacher_logits, labels in zip(source.logits, teacher.logits, assignment.labels)
    ]
