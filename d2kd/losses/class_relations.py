"""Relations between classes, whatever the logits' scale: a part of FTPD's classification term."""

from __future__ import annotations

import torch
from torch import Tensor

from d2kd.losses.kernel import check_inputs
from d2kd.losses.one_pass import one_pass

__all__ = ["pearson_kd"]

#: Added to the variances, in the squared unit of the logits.
_EPS = 1e-5


def pearson_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    One minus Pearson's correlation of student and teacher logits over the classes of a location, as half the squared
    difference of the standardised logits. With mean and population variance over the K classes of location i:

        l_i = weight_i * 1/2 mean_k (student'_ik - teacher'_ik)^2,    x' = (x - mean_k x) / sqrt(var_k x + 1e-5)

    so that, but for the constant, l_i = weight_i (1 - corr_k).

    The correlation is that of "Knowledge Distillation from A Stronger Teacher" (DIST, NeurIPS 2022, arXiv 2205.10536),
    there between probabilities; half the squared difference is the form of PKD (NeurIPS 2022, arXiv 2207.02039), there
    between features. That FTPD has such a term is a guess, see
    :class:`d2kd.losses.TemperatureFreeClassificationKD`; the weights are a choice of this library.

    Logits scaled by a positive number or shifted by a constant, on either side, change nothing but for the added
    constant: the relations of classes are compared, not how sure a detector is. Where classes are all but equal, as on
    background, this amplifies noise, so it needs a ``weight`` that is small there. Equal logits give zero loss and
    gradient, unlike 1 - corr also where they are constant over the classes. One constant side is standardised to
    zeros, so that l_i = weight_i / 2, with a finite gradient. With one class the loss is zero.

    The gradient flows through the student's mean and deviation. It is made along with the loss, and is the one class
    map that is kept for the backward pass.

    Args:
        student_logits: raw logits, any shape with K classes on axis ``dim``, for instance (M, K), or the head's own
            map seen as (N, A, K, H, W) with ``dim=2``.
        teacher_logits: raw logits, same shape.
        weight, dim, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss, without unit.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), torch.tensor([[0.0, 4, 6], [6, 4, 0]])
        >>> pearson_kd(student, teacher)
        tensor([0.0180, 1.9820])
    """
    check_inputs("pearson_kd", dim, student_logits=student_logits, teacher_logits=teacher_logits)
    return one_pass(
        "pearson_kd",
        _elements,
        student_logits,
        teacher_logits,
        spare=1,
        across_classes=True,
        weight=weight,
        dim=dim,
        reduction=reduction,
    )


def _elements(z: Tensor, t: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """With g = student' - teacher': g^2 / 2K, and by z (g - mean g - student' mean(g student')) / (K deviation)."""
    classes = z.shape[-1]
    deviation = _standardize_(z, spare)
    _standardize_(t, spare)
    gap = torch.sub(z, t, out=t)
    pull = torch.mul(gap, z, out=spare).mean(-1, keepdim=True)
    value = torch.mul(gap, gap, out=spare).mul_(0.5 / classes)
    return value, gap.sub_(gap.mean(-1, keepdim=True)).sub_(z.mul_(pull)).div_(deviation.mul_(classes))


def _standardize_(x: Tensor, spare: Tensor) -> Tensor:
    """Standardises over the last axis and returns the deviation."""
    x.sub_(x.mean(-1, keepdim=True))
    deviation = torch.mul(x, x, out=spare).mean(-1, keepdim=True).add_(_EPS).sqrt_()
    x.div_(deviation)
    return deviation
