"""Binary classification distillation: BCKD's classification term, which is also CrossKD's KD-QFL."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_inputs, check_number
from d2kd.losses.one_pass import one_pass
from d2kd.structures import DenseOutput

__all__ = ["BinaryClassificationKD", "binary_classification_kd", "gap_weighted_bce"]


def binary_classification_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    Gap-weighted binary cross entropy between student and teacher classification logits.

    With p = sigmoid(student), q = sigmoid(teacher), per location i:

        l_i = weight_i * sum_k |p_ik - q_ik|^beta * BCE(p_ik, q_ik)

    Two papers use this function, both with beta = 1:

    * L_cls of "Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection"
      (BCKD, ICCV 2023): sum_i sum_k w_ik BCE(p_ik, q_ik) with w_ik = |q_ik - p_ik|;
    * L_cls of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR 2024, arXiv
      2306.11369), where the student logits are the crossed ones. Its code calls the function KD quality
      focal loss.

    The exponent beta is from the authors' code, not from the text of the papers, and so is the gradient through the
    gap |p - q|. Per element

        dl/dz = |d|^beta d + beta |d|^(beta-1) sign(d) p (1 - p) BCE(p, q),    d = p - q.

    The second piece does not vanish as p approaches q, since the BCE of a soft target stays at the target's entropy:
    it acts like an L1 loss.

    Equal logits give exactly zero loss and gradient for beta > 0. The gradient is made along with the loss, in blocks,
    and is the one class map that is kept for the backward pass, in the dtype of the student's logits (in float32 for
    float16). Neither input is kept.

    Args:
        student_logits: raw logits, any shape with K classes on axis ``dim``, for instance
            (N, R, K) or the head's own map seen as (N, A, K, H, W) with ``dim=2``.
        teacher_logits: raw logits, same shape.
        beta: exponent of the gap, >= 0. Zero is plain BCE, whose minimum is not zero.
        weight, dim, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss in nats.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
        >>> binary_classification_kd(student, teacher)
        tensor([0.1602, 0.4291])
    """
    check_inputs("binary_classification_kd", dim, student_logits=student_logits, teacher_logits=teacher_logits)
    return one_pass(
        "binary_classification_kd",
        partial(_of_logits, beta),
        student_logits,
        teacher_logits,
        spare=5,
        weight=weight,
        dim=dim,
        reduction=reduction,
    )


def gap_weighted_bce(
    logits: Tensor,
    targets: Tensor,
    *,
    beta: float,
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    Binary cross entropy with soft targets, weighted by its gap: per location i, with p = sigmoid(logits),

        l_i = weight_i * sum_k |p_ik - y_ik|^beta * BCE(p_ik, y_ik)

    With ``beta=2`` this is the quality focal loss of "Generalized Focal Loss: Learning Qualified and
    Distributed Bounding Boxes for Dense Object Detection" (NeurIPS 2020), where y is the IoU of the
    predicted box at the object's class and 0 elsewhere. As in the authors' code the gradient flows through
    the gap too.

    The function is :func:`binary_classification_kd` with probabilities for targets, and keeps as little. Equal
    probabilities give a zero only up to the rounding of the sigmoid.

    Args:
        logits: raw logits, any shape with K classes on axis ``dim``.
        targets: probabilities in [0, 1], same shape; detached. Not checked, since that would wait for the device.
        beta: exponent of the gap, >= 0. Zero is plain BCE.
        weight, dim, reduction: see :mod:`d2kd.losses`.

    Returns:
        The loss in nats.

    Example:
        >>> logits, targets = torch.tensor([[0.0, 1.0], [2.0, -2.0]]), torch.tensor([[0.5, 0.0], [1.0, 0.0]])
        >>> gap_weighted_bce(logits, targets, beta=2)
        tensor([0.7019, 0.0036])
    """
    check_inputs("gap_weighted_bce", dim, logits=logits, targets=targets)
    return one_pass(
        "gap_weighted_bce",
        partial(_of_probabilities, beta),
        logits,
        targets,
        spare=4,
        weight=weight,
        dim=dim,
        reduction=reduction,
    )


def _of_probabilities(beta: float, z: Tensor, y: Tensor, *spare: Tensor) -> tuple[Tensor, Tensor]:
    p, gap, sign, slope = spare
    torch.sub(torch.sigmoid(z, out=p), y, out=gap)
    torch.sign(gap, out=sign)
    torch.sub(_ONE, p, out=slope).mul_(p)
    # BCE = |z| (y if z < 0 else 1 - y) + ln(1 + exp(-|z|)), written over y
    torch.sub(torch.sign(z, out=p).clamp_(min=0), y, out=y).mul_(z)
    # ln(1 + e) = ln(u) + (e - (u - 1)) to rounding error, with u = 1 + e rounded: the bracket is what
    # rounding lost, all there is for a confident logit. (On CPU torch.log1p takes ten times as long as log.)
    lost = z.abs_().neg_().exp_()
    kept = torch.add(lost, 1, out=p).sub_(1)
    bce = y.add_(lost.sub_(kept)).add_(kept.add_(1).log_())
    return _value_and_gradient(gap.abs_(), sign, bce, slope, beta)


def _of_logits(beta: float, z: Tensor, t: Tensor, *spare: Tensor) -> tuple[Tensor, Tensor]:
    """BCE = -z q - ln(1 - p), once both logits have been given the sign that makes z negative."""
    turn, p, sign, bce, work = spare
    # Turned so, p is the smaller of p and 1 - p, of which float32 loses nothing.
    torch.copysign(_ONE, z, out=turn).neg_()
    torch.sigmoid(z.mul_(turn), out=p)
    t.mul_(turn).sigmoid_()
    z.mul_(t)
    # Equal logits have no gap: both sigmoids are rounded alike, since they lie in buffers of one layout.
    gap = torch.sub(p, t, out=t)
    torch.sign(gap, out=sign).mul_(turn)
    _minus_log_1m(p, bce, turn, work).sub_(z)
    return _value_and_gradient(gap.abs_(), sign, bce, p.addcmul_(p, p, value=-1), beta)


def _minus_log_1m(p: Tensor, out: Tensor, *spare: Tensor) -> Tensor:
    """-ln(1 - p) for p in [0, 1/2]."""
    if p.dtype != torch.float32 or p.device.type != "cpu":
        return torch.neg(p, out=out).log1p_().neg_()
    # 2 atanh(s) with s = p / (2 - p), by a polynomial in s^2, right to 2e-7. On a CPU log1p takes several times as
    # long, and so does log on some.
    square, polynomial = spare
    minus_s = torch.div(p, torch.sub(p, 2, out=out), out=out)
    torch.mul(minus_s, minus_s, out=square)
    torch.addcmul(_ATANH[1], _ATANH[0], square, out=polynomial)
    for coefficient in _ATANH[2:]:
        torch.addcmul(coefficient, polynomial, square, out=polynomial)
    return minus_s.mul_(polynomial)


#: -2 atanh(s) / s for s in [0, 1/3] as a polynomial in s^2, highest power first, of the least relative error (4e-9).
_ATANH = torch.tensor((-0.281783326, -0.279606076, -0.400249095, -0.666663147, -2.0), device="cpu").unbind()

_ONE = torch.tensor(1.0, device="cpu")  # a scalar, on any device


def _value_and_gradient(gap: Tensor, sign: Tensor, bce: Tensor, slope: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """
    Of each element, from |d|, the sign of d, the BCE and p (1 - p), all written over. Both pieces of the gradient
    share a factor: sign(d) |d|^(beta-1) (d^2 + beta p (1 - p) BCE).
    """
    slope.mul_(bce)
    if beta == 1:
        return bce.mul_(gap), slope.addcmul_(gap, gap).mul_(sign)
    # For beta < 1 the power is infinite at a zero gap, where the sign has already made the product zero; the floor
    # keeps that zero from becoming NaN.
    power = gap.clamp(min=torch.finfo(gap.dtype).tiny).pow_(beta - 1)
    slope.mul_(beta).addcmul_(gap, gap).mul_(sign).mul_(power)
    return bce.mul_(gap.pow_(beta)), slope


@LOSS_REGISTRY.register()
class BinaryClassificationKD(DistillationLoss):
    """
    :func:`binary_classification_kd` over dense outputs: BCKD's classification term with ``source="student"``,
    CrossKD's (KD-QFL) with ``source="crossed"``.

    Args:
        beta: exponent of the gap, >= 0; 1 in both papers' code.
        kwargs: see :class:`DistillationLoss`.
    """

    task = "cls"

    def __init__(self, *, beta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number(type(self).__name__, "beta", beta, at_least=0)
        self.beta = beta

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        return binary_classification_kd(
            source.logits[level],
            teacher.logits[level],
            beta=self.beta,
            weight=region,
            dim=source.class_dim,
            reduction="sum",
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, beta={self.beta}"
