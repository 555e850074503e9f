"""Channel-wise distillation: where each channel of a feature map is high, as a distribution over its cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.kernel import (
    check_floating,
    check_number,
    check_positive,
    check_reduction,
    check_weight,
    compute_dtype,
    weigh_and_reduce,
)
from d2kd.losses.temperature_kl import log_softmax
from d2kd.structures import DenseOutput

__all__ = ["ChannelWiseKD", "channel_wise_kd"]


def channel_wise_kd(
    student: Tensor, teacher: Tensor, *, temperature: float, weight: Tensor | None = None, reduction: str = "none"
) -> Tensor:
    """
    Divergence of each channel's softmax over the cells of one image, cell by cell, mean over channels.

    With p = softmax(teacher_c / T) and q = softmax(student_c / T) over the H*W cells i of channel c of one image:

        l_i = weight_i * T^2 * mean_c (p_ci ln(p_ci / q_ci) - p_ci + q_ci)

    Without a weight the sum over an image's cells is that of "Channel-wise Knowledge Distillation for Dense Prediction"
    (ICCV 2021, arXiv 2011.13256), T^2 / C sum_c KL(p_c || q_c), since p_c and q_c both sum to one. The two terms that
    cancel there are ours: with them every cell is >= 0 and zero where p = q, so that weights keep a loss whose least
    value is at the teacher's distributions; p ln(p / q) alone is negative where q > p, and its weighted sum falls below
    zero as the student leaves the teacher. A weight is applied after the softmax, which is always over all cells: it
    says whose difference counts, not which cells a channel's mass is shared among.

    The teacher is detached. A constant added to a channel of an image changes nothing; equal inputs, and a single cell,
    give zero (up to rounding of the order of 1e-7 T^2). One value that is not finite makes all cells of its image NaN.
    Computed in float32 whatever the input dtype or autocast (float64 stays float64); of the maps only the two inputs
    are kept for the backward pass.

    Args:
        student: (N, C, H, W).
        teacher: same shape.
        temperature: T > 0, in the unit of the features.
        weight: a factor per cell, (N, H, W); detached.
        reduction: "none" or "sum" over images and cells. There is no mean over cells: the distributions share a mass
            of one among them.

    Returns:
        The loss in nats times the squared unit of the features: (N, H, W) for "none", else a scalar. float32, or
        float64 if an input is float64.

    Raises:
        ValueError: shapes that differ, are not four-dimensional or have no channel or no cell, a non-floating dtype, a
            temperature that is not a finite number > 0, an unknown ``reduction``, a ``weight`` of another shape or one
            that requires grad.
    """
    caller = "channel_wise_kd"
    if student.shape != teacher.shape or student.dim() != 4 or 0 in student.shape[1:]:
        raise ValueError(
            f"{caller}: student and teacher must have the same shape (N, C, H, W) with one channel and one cell at "
            f"least, found {tuple(student.shape)} and {tuple(teacher.shape)}; another width needs a projector first"
        )
    check_floating(caller, student=student, teacher=teacher)
    check_positive(caller, "temperature", temperature)
    check_reduction(caller, reduction)
    check_weight(caller, weight, (len(student), *student.shape[2:]), "the maps' shape without channels")
    # A softmax over two axes: the cells in one. A view, but for maps that were cropped.
    cells = _ChannelWiseKD.apply(student.flatten(2), teacher.detach().flatten(2), float(temperature))
    return weigh_and_reduce(cells.unflatten(1, student.shape[2:]), weight, reduction)


class _ChannelWiseKD(torch.autograd.Function):
    """
    The per-cell loss of maps (N, C, cells), with its analytic gradient: (N, cells).

    Autograd would keep three fp32 maps (GFL's finest level: 17 MB each per 800x1333 image); this keeps the two inputs,
    in the dtype they came in. Autocast needs no guard: it computes a softmax in float32, or float64, as this does.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        log_q, log_p = _log_softmaxes(student, teacher, temperature)
        p = log_p.exp()
        gap = log_q.exp().sub_(p)
        return gap.add_(p.mul_(log_p.sub_(log_q))).mean(dim=1).mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        q, p = (x.exp_() for x in _log_softmaxes(student, teacher, ctx.temperature))
        # By ln q, u = g T^2 (q - p); through the softmax, (u - q sum(u)) / T. Where g is one number, sum(u) is zero.
        scale = grad_output.unsqueeze(1) * (ctx.temperature / student.shape[1])
        u = torch.sub(q, p, out=p).mul_(scale)
        grad = u.sub_(q.mul_(u.sum(dim=2, keepdim=True)))
        return grad.to(student.dtype), None, None


def _log_softmaxes(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(student, teacher)
    return tuple(log_softmax(x.to(dtype) / temperature, 2) for x in (student, teacher))


@LOSS_REGISTRY.register()
class ChannelWiseKD(FeatureLoss):
    """
    :func:`channel_wise_kd` of the pyramid's features, summed over the levels.

    The formula and its sum over cells are the paper's; it is used here on FPN features, whose temperature and weight
    are not known to us: ``temperature=1`` and every preset's weight are our choice. At temperatures well above the
    features' spread the loss no longer depends on T: it is half the variance over cells of the difference, mean over
    channels.

    The sum over an image's cells is complete as it stands, so the term is to be divided by the images and by nothing
    else: ``normalizer="images"`` divides by half of them, and ``weight=0.5`` is then the mean over images with weight
    one. "level_locations" would divide by the cells again. Padding takes part in the softmax, whatever the region.

    Args:
        temperature: see :func:`channel_wise_kd`.
        region: weighs the cells' contributions, after the softmax over all of them.
        normalizer: see above.
        kwargs: see :class:`FeatureLoss`.

    Raises:
        ValueError: as :class:`FeatureLoss`, and for a ``temperature`` that is not a finite number > 0.
    """

    def __init__(
        self, *, temperature: float = 1.0, region: Any = "everywhere", normalizer: str = "images", **kwargs: Any
    ) -> None:
        super().__init__(region=region, normalizer=normalizer, **kwargs)
        check_number(type(self).__name__, "temperature", temperature)
        self.temperature = temperature

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region`, (N, 1, H, W)."""
        weight = self.cell_weights(region)
        student, teacher_map = self.feature_maps(source, teacher, level)
        return channel_wise_kd(student, teacher_map, temperature=self.temperature, weight=weight, reduction="sum")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"
