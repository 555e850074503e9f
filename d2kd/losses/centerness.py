"""Centerness distillation: CrossKD's third term on ATSS."""

from __future__ import annotations

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.binary_classification import binary_classification_kd
from d2kd.losses.kernel import check_floating, check_reduction, check_weight, weigh_and_reduce
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

    Its minimum, at equal logits, is the entropy of the teacher's centerness, not zero. The teacher is detached.
    Computed in float32 whatever the input dtype or autocast (float64 stays float64).

    Args:
        student_logits: raw logits, any shape, one value a location.
        teacher_logits: raw logits, same shape.
        weight: a factor per location, of the same shape; detached.
        reduction: "none", "sum" or "mean" over locations (not a weighted mean; zero if there are none).

    Returns:
        The loss in nats: of the inputs' shape for "none", else a scalar. float32, or float64 if an input is float64.

    Raises:
        ValueError: shapes that differ, a non-floating dtype, an unknown ``reduction``, a ``weight`` of another shape or
            one that requires grad.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "centerness_kd: student_logits and teacher_logits must have the same shape, found "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    check_floating("centerness_kd", student_logits=student_logits, teacher_logits=teacher_logits)
    check_reduction("centerness_kd", reduction, ("none", "sum", "mean"))
    check_weight("centerness_kd", weight, student_logits.shape, "the logits' shape")
    loss = binary_classification_kd(student_logits[..., None], teacher_logits[..., None], beta=0)
    return weigh_and_reduce(loss, weight, reduction)


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
                f"{has[bool(source.centerness)]} and the teacher ({teacher.family}) {has[bool(teacher.centerness)]}: "
                "take detectors that do (ATSS, FCOS), or set this loss to null."
            )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        return centerness_kd(source.centerness[level], teacher.centerness[level], weight=region, reduction="sum")
