"""Relations between classes, whatever the logits' scale: a part of FTPD's classification term."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2kd.losses.kernel import Context, check_inputs, compute_dtype, weigh_and_reduce

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

    The gradient flows through the student's mean and deviation. Of the class maps only the two standardised ones are
    kept for the backward pass.

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
    dtype = compute_dtype(student_logits, teacher_logits)
    student = _Standardize.apply(student_logits.to(dtype), dim)
    teacher = _Standardize.apply(teacher_logits.detach().to(dtype), dim)
    return weigh_and_reduce("pearson_kd", torch.sub(student, teacher).square().mean(dim) / 2, weight, reduction)


class _Standardize(torch.autograd.Function):
    """
    (x - mean) / sqrt(var + 1e-5) over the axis ``dim``, with its analytic gradient. Autograd would keep three maps;
    this keeps the result, which what follows keeps.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.share = dim, 1 / x.shape[dim]
        centered = x - (x * ctx.share).sum(dim, keepdim=True)
        deviation = centered.square().mul_(ctx.share).sum(dim, keepdim=True).add_(_EPS).sqrt_()
        result = centered.div_(deviation)
        ctx.save_for_backward(result, deviation)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        result, deviation = ctx.saved_tensors
        pull = result * (grad_output * result).sum(ctx.dim, keepdim=True)
        pull.add_(grad_output.sum(ctx.dim, keepdim=True)).mul_(ctx.share)
        return torch.sub(grad_output, pull).div_(deviation), None
