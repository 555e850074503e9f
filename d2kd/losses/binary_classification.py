"""Binary classification distillation: BCKD's classification term, which is also CrossKD's KD-QFL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import Context, check_inputs, check_number, compute_dtype, weigh_and_reduce
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

    Equal logits give exactly zero loss and gradient for beta > 0. Of the class maps only the two inputs are kept for
    the backward pass, which recomputes the rest.

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
    loss = _GapWeightedBCE.apply(student_logits, teacher_logits.detach(), beta, True, dim)
    return weigh_and_reduce("binary_classification_kd", loss, weight, reduction)


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

    The function is :func:`binary_classification_kd` with probabilities for targets. Equal probabilities give a zero
    only up to the rounding of the sigmoid.

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
    loss = _GapWeightedBCE.apply(logits, targets.detach(), beta, False, dim)
    return weigh_and_reduce("gap_weighted_bce", loss, weight, reduction)


class _GapWeightedBCE(torch.autograd.Function):
    """
    The per-location loss with its analytic gradient. ``other`` holds the targets, as logits or as probabilities.

    Autograd would keep about five class maps (RetinaNet: 64 MB each per 800x1333 image); this keeps the
    two inputs, in the dtype they came in, and overwrites its own temporaries. Autocast needs no guard:
    it lowers matrix products and convolutions only, and there are none.
    """

    @staticmethod
    def forward(ctx: Context, logits: Tensor, other: Tensor, beta: float, other_is_logits: bool, dim: int) -> Tensor:
        ctx.save_for_backward(logits, other)
        ctx.beta, ctx.other_is_logits, ctx.dim = beta, other_is_logits, dim
        z, target, t = _unpack(logits, other, other_is_logits)
        if beta == 0:
            return _bce_(z, target).sum(dim)
        gap = _signed_gap(z, t, z.sigmoid(), target).abs_()
        if beta != 1:
            gap.pow_(beta)
        return _bce_(z, target).mul_(gap).sum(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, other = ctx.saved_tensors
        beta = ctx.beta
        z, target, t = _unpack(logits, other, ctx.other_is_logits)
        prob = z.sigmoid()
        if beta == 0:
            grad = prob.sub_(target)
        else:
            # Both pieces of the gradient share a factor: sign(d) |d|^(beta-1) * (d^2 + beta p (1 - p) BCE).
            gap = _signed_gap(z, t, prob, target)
            grad = prob.mul_(1 - prob).mul_(_bce_(z, target)).mul_(beta).addcmul_(gap, gap)
            if beta == 1:
                grad.mul_(gap.sign_())
            else:
                grad.mul_(gap.sign())
                # For beta < 1 the power is infinite at a zero gap, where the sign has already made the
                # product zero; the floor keeps that zero from becoming NaN.
                grad.mul_(gap.abs_().clamp_(min=torch.finfo(gap.dtype).tiny).pow_(beta - 1))
        grad.mul_(grad_output.unsqueeze(ctx.dim))
        return grad.to(logits.dtype), None, None, None, None


def _unpack(logits: Tensor, other: Tensor, other_is_logits: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits and targets in the dtype to compute in, the targets free to be written over; and the targets' logits."""
    dtype = compute_dtype(logits, other)
    z, t = logits.to(dtype), other.to(dtype)
    if other_is_logits:
        return z, t.sigmoid(), t
    return z, t.clone() if t is other else t, None


def _signed_gap(z: Tensor, t: Tensor | None, prob: Tensor, target: Tensor) -> Tensor:
    # A sigmoid may differ in its last bit between two memory layouts (vectorised or not). Its sign would
    # turn that noise into a full-sized gradient, so that equal logits are made equal here.
    gap = torch.sub(prob, target)
    return gap if t is None else gap.masked_fill_(z == t, 0)


def _bce_(z: Tensor, target: Tensor) -> Tensor:
    """BCE with logits, written over ``target``: |z| (target if z < 0 else 1 - target) + ln(1 + exp(-|z|))."""
    target.neg_().add_(z > 0).mul_(z)
    # ln(1 + e) = ln(u) + (e - (u - 1)) to rounding error, with u = 1 + e rounded: the bracket is what
    # rounding lost, all there is for a confident logit. (On CPU torch.log1p takes ten times as long as log.)
    lost = z.abs().neg_().exp_()
    kept = (lost + 1).sub_(1)
    lost.sub_(kept)
    return target.add_(lost).add_(kept.add_(1).log_())


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
