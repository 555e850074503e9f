"""Centerness distillation: CrossKD's third term on ATSS."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_inputs, compute_dtype, weigh_and_reduce
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["CenternessKD", "centerness_kd"]


def centerness_kd(
    student_logits: Tensor, teacher_logits: Tensor, *, weight: Tensor | None = None, reduction: str = "none"
) -> Tensor:
    """
    Binary cross entropy of the student's centerness with the teacher's.

        l_i = weight_i * BCE(sigmoid(student_i), sigmoid(teacher_i))

    From the authors' code of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
    2306.11369), which applies it to ATSS, on the positives and with the student's logits from the crossed output;
    the text has no such term.

    Its minimum, at equal logits, is the entropy of the teacher's centerness, not zero.

    Args:
        student_logits: raw logits, any shape, one value a location.
        teacher_logits: raw logits, same shape.
        weight, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss in nats.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
        >>> centerness_kd(student, teacher)
        tensor([0.6931, 0.6648, 1.0443])
    """
    check_inputs("centerness_kd", student_logits=student_logits, teacher_logits=teacher_logits)
    dtype = compute_dtype(student_logits, teacher_logits)
    target = teacher_logits.detach().to(dtype).sigmoid()
    loss = F.binary_cross_entropy_with_logits(student_logits.to(dtype), target, reduction="none")
    return weigh_and_reduce("centerness_kd", loss, weight, reduction)


@LOSS_REGISTRY.register()
class CenternessKD(DistillationLoss):
    """
    :func:`centerness_kd` over dense outputs of detectors that predict centerness (ATSS, FCOS): CrossKD's term with
    ``source="crossed", region="positives"``.

    Args:
        kwargs: see :class:`DistillationLoss`.
    """

    task = "centerness"

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        if not (source.centerness and teacher.centerness):
            has = {True: "predicts it", False: "does not"}
            raise ValueError(
                f"CenternessKD needs centerness on both sides, but {self.source} ({source.family}) "
                f"{has[source.centerness]} and the teacher ({teacher.family}) {has[teacher.centerness]}: "
                "take detectors that do (ATSS, FCOS), or set this loss to null."
            )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        assert source.centerness is not None and teacher.centerness is not None  # check_pair has refused others
        return centerness_kd(source.centerness[level], teacher.centerness[level], weight=region, reduction="sum")
