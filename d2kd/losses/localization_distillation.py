"""Localization distillation: temperature KL between the distributions of box edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_choice, check_number, drop_unweighted, weigh_and_reduce
from d2kd.losses.temperature_kl import BIN_REDUCTIONS, temperature_kl
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["LocalizationDistillation", "check_equal_bins", "localization_distillation"]


def localization_distillation(
    student_bins: Tensor,
    teacher_bins: Tensor,
    *,
    temperature: float = 10.0,
    bin_reduction: str = "mean",
    weight: Tensor | None = None,
    dim: int = -1,
    reduction: str = "none",
) -> Tensor:
    """
    Temperature KL between the distributions that student and teacher predict for a box edge.

    With p = softmax(teacher / T), q = softmax(student / T) over the n + 1 bins of one edge i:

        l_i = weight_i * T^2 * mean_b p_ib (ln p_ib - ln q_ib)

    Two papers use this function, without their normalisers and loss weights:

    * LD of "Localization Distillation for Dense Object Detection" (CVPR 2022, arXiv 2102.12252) and
      "Localization Distillation for Object Detection" (TPAMI, arXiv 2204.05957), T = 10;
    * L_reg on distribution heads of "CrossKD: Cross-Head Knowledge Distillation for Object Detection" (CVPR
      2024, arXiv 2306.11369), with the student's bins from the crossed output, T = 1, ``bin_reduction="sum"``.

    The mean over bins is that of LD's code, for which the papers' loss weights are tuned. A true KL is the sum,
    (n + 1) times larger: 17 times for the usual n = 16.

    The location's weight comes from the region. In LD's code it is the student's largest class score in the main
    region (the positives), and the IoU of anchor and object in the valuable localization region.

    Args:
        student_bins: raw logits, any shape with the n + 1 bins of an edge on axis ``dim``, for instance
            (M, 4, n+1), or the head's own map seen as (N, A, 4, n+1, H, W) with ``dim=3``.
        teacher_bins: raw logits, same shape.
        temperature: T > 0.
        bin_reduction: "mean" or "sum" over the bins.
        weight, dim, reduction: see :mod:`d2kd.losses`; a location is an edge.

    Returns:
        The loss in nats.

    Raises:
        ValueError, KeyError: see :func:`d2kd.losses.temperature_kl`, which computes it.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 4, 3), torch.arange(12.0).square().view(1, 4, 3)
        >>> localization_distillation(student, teacher)
        tensor([[ 0.5045,  6.5002, 15.1796, 22.5753]])
    """
    return temperature_kl(
        student_bins,
        teacher_bins,
        temperature=temperature,
        bin_reduction=bin_reduction,
        weight=weight,
        dim=dim,
        reduction=reduction,
    )


@LOSS_REGISTRY.register()
class LocalizationDistillation(DistillationLoss):
    """
    :func:`localization_distillation` over the edge distributions of dense outputs, averaged over a location's four
    edges: LD with ``source="student"``, CrossKD's box term on GFL with ``source="crossed"``.

    Both detectors need a distribution head with the same number of bins.

    Args:
        temperature: T > 0; 10 in LD, 1 in CrossKD.
        bin_reduction: "mean" (LD's code) or "sum" (CrossKD's) over the bins.
        kwargs: see :class:`DistillationLoss`.
    """

    task = "box"

    def __init__(self, *, temperature: float = 10.0, bin_reduction: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number(type(self).__name__, "temperature", temperature)
        check_choice(type(self).__name__, "bin_reduction", bin_reduction, BIN_REDUCTIONS)
        self.temperature = temperature
        self.bin_reduction = bin_reduction

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        check_equal_bins(self, source, teacher, "or use IoULocalizationKD")

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        region, student_bins, teacher_bins = drop_unweighted(
            region, source.box_params[level], teacher.box_params[level]
        )
        edges = localization_distillation(
            student_bins, teacher_bins, temperature=self.temperature, bin_reduction=self.bin_reduction, dim=3
        )
        return weigh_and_reduce(type(self).__name__, edges.mean(dim=2), region, "sum")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, bin_reduction={self.bin_reduction}"


def check_equal_bins(loss: DistillationLoss, source: OutputSpec, teacher: OutputSpec, otherwise: str) -> None:
    """Refuse, in the name of ``loss``, heads without equal bins; ``otherwise``: what else to do, in words."""
    if source.bins is None or source.bins != teacher.bins:
        ours, theirs = (
            "none" if output.bins is None else f"{output.bins} (reg_max={output.bins - 1})"
            for output in (source, teacher)
        )
        raise ValueError(
            f"{type(loss).__name__} compares the distributions of box edges and needs equal bins on both sides, but "
            f"{loss.source} ({source.family}) has {ours} and the teacher ({teacher.family}) has {theirs}: give both "
            "detectors a distribution head (GFL, DistributionRetinaNet, DistributionFCOS, DistributionATSS) of the "
            f"same head.reg_max, {otherwise}."
        )
