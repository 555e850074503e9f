"""Localization distillation: temperature KL between the distributions of box edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import check_number, check_reduction, check_weight, drop_unweighted, weigh_and_reduce
from d2kd.losses.temperature_kl import BIN_REDUCTIONS, check_inputs, temperature_kl
from d2kd.structures import DenseOutput, OutputSpec

__all__ = ["LocalizationDistillation", "localization_distillation"]


def localization_distillation(
    student_bins: Tensor,
    teacher_bins: Tensor,
    *,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    bin_reduction: str = "mean",
    reduction: str = "none",
    dim: int = -1,
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

    The teacher is detached. How it is computed: :func:`d2kd.losses.temperature_kl`.

    Args:
        student_bins: raw logits, any shape with the n + 1 bins of an edge on axis ``dim``, for instance
            (M, 4, n+1), or the head's own map seen as (N, A, 4, n+1, H, W) with ``dim=3``.
        teacher_bins: raw logits, same shape.
        temperature: T > 0.
        weight: a factor per edge, of the inputs' shape without axis ``dim``; detached.
        bin_reduction: "mean" or "sum" over the bins.
        reduction: "none", "sum" or "mean" over the edges (not a weighted mean; zero if there are none).
        dim: the axis of the bins.

    Returns:
        The loss in nats: per edge (the inputs' shape without axis ``dim``) for "none", else a scalar.
        float32, or float64 if an input is float64.

    Raises:
        ValueError: shapes that differ, a non-floating dtype, a ``dim`` out of range or without bins, a ``temperature``
            that is not a finite number > 0, an unknown ``bin_reduction`` or ``reduction``, a ``weight`` of another
            shape or one that requires grad.
    """
    caller = "localization_distillation"
    check_inputs(caller, student_bins, teacher_bins, temperature, bin_reduction, dim)
    check_reduction(caller, reduction, ("none", "sum", "mean"))
    expected = list(student_bins.shape)
    del expected[dim]
    check_weight(caller, weight, expected, "the inputs' shape without the bins")
    loss = temperature_kl(student_bins, teacher_bins, temperature=temperature, bin_reduction=bin_reduction, dim=dim)
    return weigh_and_reduce(loss, weight, reduction)


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
        check_number("LocalizationDistillation", "temperature", temperature)
        if bin_reduction not in BIN_REDUCTIONS:
            raise ValueError(
                f"LocalizationDistillation.bin_reduction is {bin_reduction!r}, "
                f"expected one of {', '.join(BIN_REDUCTIONS)}."
            )
        self.temperature = temperature
        self.bin_reduction = bin_reduction

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        if source.bins is None or source.bins != teacher.bins:
            raise ValueError(
                "LocalizationDistillation compares the distributions of box edges and needs equal bins on both sides, "
                f"but {self.source} ({source.family}) has {_bins(source)} and the teacher ({teacher.family}) has "
                f"{_bins(teacher)}: give both detectors a distribution head (GFL, DistributionRetinaNet, "
                "DistributionFCOS, DistributionATSS) of the same head.reg_max, or use IoULocalizationKD."
            )

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        region, student_bins, teacher_bins = drop_unweighted(
            region, source.box_params[level], teacher.box_params[level]
        )
        edges = localization_distillation(
            student_bins, teacher_bins, temperature=self.temperature, bin_reduction=self.bin_reduction, dim=3
        )
        return weigh_and_reduce(edges.mean(dim=2), region, "sum")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}, bin_reduction={self.bin_reduction}"


def _bins(output: OutputSpec) -> str:
    return "none" if output.bins is None else f"{output.bins} (reg_max={output.bins - 1})"
