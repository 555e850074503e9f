"""
FTPD's regions: where the teacher is good, where an edge can be learnt.

"Where to distill" is one of two questions in the abstract of "FTPD" (Song et al., IEEE TCSVT 35(5), 2025). What it
answers is in no public text: both regions are reconstructed from that abstract and related work.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from d2kd.regions.base import REGION_REGISTRY, check_bool, check_option, is_number
from d2kd.regions.boxes import valuable_localization
from d2kd.regions.scores import teacher_confidences
from d2kd.structures import Assignment, DenseOutput

#: Where FTPD's localisation terms teach, unless told otherwise: a loss's ``region``.
QUALITY = MappingProxyType({"name": "teacher_quality", "centerness": True})


@torch.no_grad()
def main_and_valuable_region(positives: Tensor, valuable: Tensor, quality: Tensor, *, gain: float = 0.25) -> Tensor:
    """
    LD's two regions in one term: the positives with the teacher's quality, and beside them LD's valuable localisation
    region with ``gain``. A positive that lies in the band of its own or another object counts once, as a positive.

    LD itself gives each region a term of its own, weighs the positives with the student's score, and leaves positives
    that are also in the band in both.

        >>> positives, valuable = torch.tensor([True, True, False]), torch.tensor([0.6, 0, 0.8])
        >>> main_and_valuable_region(positives, valuable, torch.tensor([0.9, 0.7, 0.9]))
        tensor([0.9000, 0.7000, 0.2000])

    Args:
        positives: booleans of any shape.
        valuable: weights of the valuable localisation region, same shape.
        quality: weights of the positives, same shape.
        gain: factor of ``valuable``, a finite number >= 0.

    Returns:
        weights of that shape.
    """
    check_option("gain", gain, is_number(gain) and gain >= 0, "a finite number >= 0")
    return torch.where(positives, quality.float(), valuable.float() * gain)


@REGION_REGISTRY.register()
def main_and_valuable(
    source: DenseOutput,
    teacher: DenseOutput,
    assignment: Assignment,
    *,
    gain: float = 0.25,
    centerness: bool = False,
) -> list[Tensor]:
    """
    :func:`main_and_valuable_region` of each image: :func:`d2kd.regions.teacher_confidence` on the positives, with
    centerness where ``centerness`` is true and the teacher predicts it, and ``gain`` * IoU(anchor, object) in the band
    of :func:`d2kd.regions.valuable_localization_region`.
    """
    check_bool("centerness", centerness)
    band = valuable_localization(source, teacher, assignment)
    levels = zip(assignment.positives, band, teacher_confidences(teacher, centerness))
    return [main_and_valuable_region(*level, gain=gain) for level in levels]
