"""Softmax classification distillation: LD's classification term, and what BCKD argues against."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_integer, check_number, drop_unweighted
from d2kd.losses.temperature_kl import temperature_kl
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["SoftmaxClassificationKD", "softmax_classification_kd"]

logger = logging.getLogger(__name__)


def softmax_classification_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    Temperature KL between student and teacher classes, as if they were exclusive.

    With p = softmax(teacher / T), q = softmax(student / T) over the K classes of location i:

        l_i = weight_i * T^2 * mean_k p_ik (ln p_ik - ln q_ik)

    The classification term of "Localization Distillation for Dense Object Detection" (CVPR 2022, arXiv
    2102.12252), T = 2: a softmax over the logits of K sigmoid classifiers, and a mean over classes, both from the
    authors' code, which applies it to the positives and divides by their number on each level.

    A dense detector's scores are sigmoids, so this compares only which class is ahead of which: with all logits of
    a location shifted by a constant it stays zero although every score differs, and with one class it is zero
    always. That is the inconsistency of "Bridging Cross-task Protocol Inconsistency for Distillation in Dense
    Object Detection" (ICCV 2023), whose answer is :func:`d2kd.losses.binary_classification_kd`.

    Args:
        student_logits: raw logits, any shape with the K classes on axis ``dim``, for instance (M, K), or the
            head's own map seen as (N, A, K, H, W) with ``dim=2``.
        teacher_logits: raw logits, same shape.
        temperature: T > 0.
        weight, dim, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss in nats.

    Raises:
        ValueError: see :func:`d2kd.losses.temperature_kl`, which computes it.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 1.0], [5.0, 6.0]]), torch.tensor([[0.0, 3.0], [0.0, 3.0]])
        >>> softmax_classification_kd(student, teacher)
        tensor([0.1805, 0.1805])
    """
    return temperature_kl(
        student_logits, teacher_logits, temperature=temperature, weight=weight, dim=dim, reduction=reduction
    )


@LOSS_REGISTRY.register()
class SoftmaxClassificationKD(DistillationLoss):
    """
    :func:`softmax_classification_kd` over dense outputs: LD's classification term with ``region="positives"``,
    ``normalizer="level_locations"``.

    Args:
        temperature: T > 0; 2 in LD.
        tuned_for_classes: the number of classes for which the weight was tuned: the mean over K classes is multiplied
            by K over this, since with fewer classes a location's mean is larger, not its sum. None: it is not.
        kwargs: see :class:`DistillationLoss`.
    """

    task = "cls"

    def __init__(self, *, temperature: float = 2.0, tuned_for_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number(type(self).__name__, "temperature", temperature)
        if tuned_for_classes is not None:
            check_integer(type(self).__name__, "tuned_for_classes", tuned_for_classes, at_least=1)
        self.temperature = temperature
        self.tuned_for_classes = tuned_for_classes

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        if source.num_classes == 1:
            logger.warning(
                "SoftmaxClassificationKD is identically zero with one class (num_classes=1), since a softmax over one "
                "logit is 1: set this loss to null, or use BinaryClassificationKD instead."
            )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        num_classes = source.logits[level].shape[source.class_dim]
        region, student_logits, teacher_logits = drop_unweighted(region, source.logits[level], teacher.logits[level])
        loss = softmax_classification_kd(
            student_logits,
            teacher_logits,
            temperature=self.temperature,
            weight=region,
            dim=source.class_dim,
            reduction="sum",
        )
        return loss if self.tuned_for_classes is None else loss * (num_classes / self.tuned_for_classes)

    def extra_repr(self) -> str:
        own = f"temperature={self.temperature}, tuned_for_classes={self.tuned_for_classes}"
        return f"{super().extra_repr()}, {own}"
