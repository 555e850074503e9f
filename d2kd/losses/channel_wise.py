"""Channel-wise distillation: where each channel of a feature map is high, as a distribution over its cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.channels import channel_blocks, take
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.kernel import check_inputs, check_maps, check_number, compute_dtype, weigh_and_reduce
from d2kd.losses.one_pass import KnownGradient
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
    zero as the student moves away from the teacher. A weight is applied after the softmax, which is always over all
    cells: it selects whose difference counts, not the cells that a channel's distribution is over.

    A constant added to a channel of an image changes nothing; equal inputs, and a single cell, give zero (up to
    rounding of the order of 1e-7 T^2). One value that is not finite makes all cells of its image NaN. A sum makes its
    gradient with its value and keeps that map alone for the backward pass.

    Args:
        student: (N, C, H, W).
        teacher: same shape.
        temperature: T > 0, in the unit of the features.
        weight, reduction: see :mod:`d2kd.losses`; a location is a cell.

    Returns:
        The loss in nats times the squared unit of the features, (N, H, W) or summed.

    Example:
        >>> student, teacher = torch.zeros(1, 1, 1, 3), torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 1, 3)
        >>> channel_wise_kd(student, teacher, temperature=2.0)
        tensor([[[0.2867, 0.0702, 0.4138]]])
    """
    caller = "channel_wise_kd"
    check_maps(caller, student=student, teacher=teacher)
    check_inputs(caller, 1, student=student, teacher=teacher)
    check_number(caller, "temperature", temperature)
    dtype = compute_dtype(student, teacher)
    if reduction == "sum":
        ones = student.new_ones((student.shape[0], *student.shape[2:]), dtype=dtype)
        weight = weigh_and_reduce(caller, ones, weight, "none")
        needs_gradient = torch.is_grad_enabled() and student.requires_grad
        total, gradient = _sum_and_gradient(student, teacher, weight, temperature, needs_gradient)
        return total if gradient is None else KnownGradient.apply(student, total, gradient, 1)
    logits = (x.to(dtype).flatten(2) / temperature for x in (student, teacher.detach()))
    log_q, log_p = (x.log_softmax(dim=2).unflatten(2, student.shape[2:]) for x in logits)
    cells = (log_p.exp() * (log_p - log_q) - log_p.exp() + log_q.exp()).mean(dim=1) * temperature**2
    return weigh_and_reduce(caller, cells, weight, reduction)


@torch.no_grad()
def _sum_and_gradient(
    student: Tensor, teacher: Tensor, weight: Tensor, temperature: float, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """
    The sum of the weighted cells, and its gradient from the same two softmaxes, block by block of the channels.

    The gradient is in the student's dtype, but float32 for float16, which has no room for one that is not scaled yet.
    Autograd would keep three maps and compute the student's softmax once more. Autocast needs no guard: it computes a
    softmax in float32, or float64, as this does.
    """
    grad = None
    if needs_gradient:
        grad = torch.empty_like(student, dtype=torch.promote_types(student.dtype, torch.bfloat16))
    weight = weight.unsqueeze(1) * (temperature / student.shape[1])
    total = weight.new_zeros(())
    for block in channel_blocks(student, teacher):
        z, y = ((take(x, block, weight.dtype) / temperature).contiguous() for x in (student, teacher))
        q, p = (x.flatten(2).softmax(dim=2).view(x.shape) for x in (z, y))
        # ln(p / q) where p and q may underflow: ln p is y, less its largest value, plus the largest ln p.
        log_ratio = y.sub_(_largest(y)).sub_(z.sub_(_largest(z))).add_((_largest(p) / _largest(q)).log_())
        gap = q - p
        total += p.mul_(log_ratio).add_(gap).mul_(weight).sum()
        if grad is not None:
            # By ln q, u = w T^2 (q - p); through the softmax, (u - q sum(u)) / T.
            u = gap.mul_(weight)
            torch.addcmul(u, q, u.sum(dim=(2, 3), keepdim=True), value=-1, out=grad[:, block])
    return total.mul_(temperature), grad


def _largest(x: Tensor) -> Tensor:
    """Each channel's largest value, (N, C, 1, 1)."""
    return x.amax(dim=(2, 3), keepdim=True)


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
        temperature: T > 0, see :func:`channel_wise_kd`.
        region: weighs the cells' contributions, after the softmax over all of them.
        normalizer: see above.
        kwargs: see :class:`FeatureLoss`.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        region: str | Mapping[str, Any] = "everywhere",
        normalizer: str = "images",
        **kwargs: Any,
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
