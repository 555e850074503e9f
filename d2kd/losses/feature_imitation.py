"""Feature imitation: squared difference of the pyramid's features in a region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY, DistillationLoss
from d2kd.losses.kernel import (
    check_floating,
    check_reduction,
    check_weight,
    compute_dtype,
    drop_unweighted,
    weigh_and_reduce,
)

if TYPE_CHECKING:
    from d2kd.modeling.dense_output import DenseOutput, OutputSpec

__all__ = ["FeatureImitation", "feature_imitation"]


def feature_imitation(
    student: Tensor, teacher: Tensor, *, weight: Tensor | None = None, reduction: str = "none"
) -> Tensor:
    """
    Mean over channels of the squared difference of two feature maps, per cell.

        l_i = weight_i * mean_c (student_ic - teacher_ic)^2

    The kernel of imitation inside a region, as "Localization Distillation for Dense Object Detection" (CVPR 2022,
    arXiv 2102.12252) compares it with LD. There the region is one of those of "Distilling Object Detectors with
    Fine-grained Feature Imitation" (CVPR 2019), "General Instance Distillation for Object Detection" (CVPR 2021), or
    the inside of the boxes, and the term is the mean over the region's cells, level by level.

    The teacher is detached. Computed in float32 whatever the input dtype or autocast (float64 stays float64).

    Args:
        student: (N, C, H, W).
        teacher: same shape.
        weight: a factor per cell, (N, H, W); detached.
        reduction: "none", "sum" or "mean" over cells (not a weighted mean; zero if there are none).

    Returns:
        The loss, in the squared unit of the features: (N, H, W) for "none", else a scalar. float32, or float64 if an
        input is float64.

    Raises:
        ValueError: shapes that differ or are not four-dimensional or have no channel, a non-floating dtype, an unknown
            ``reduction``, a ``weight`` of another shape or one that requires grad.
    """
    if student.shape != teacher.shape or student.dim() != 4 or student.shape[1] == 0:
        raise ValueError(
            "feature_imitation: student and teacher must have the same shape (N, C, H, W), found "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; another width needs an adapter first"
        )
    check_floating("feature_imitation", student=student, teacher=teacher)
    check_reduction("feature_imitation", reduction, ("none", "sum", "mean"))
    check_weight("feature_imitation", weight, (len(student), *student.shape[2:]), "the maps' shape without channels")
    dtype = compute_dtype(student, teacher)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    return weigh_and_reduce(difference.square().mean(dim=1), weight, reduction)


@LOSS_REGISTRY.register()
class FeatureImitation(DistillationLoss):
    """
    :func:`feature_imitation` over the maps that the heads were given, with a cell's weight the largest of its
    anchors'.

    Args:
        normalizer: see :class:`DistillationLoss`; "level_locations" is LD's code's: the mean over the region's cells,
            level by level.
        kwargs: see :class:`DistillationLoss`; ``source`` is "student", since a crossed output has no features.

    Raises:
        ValueError: as :class:`DistillationLoss`, and for another source.
    """

    task = "feature"

    def __init__(self, *, normalizer: str = "level_locations", **kwargs: Any) -> None:
        super().__init__(normalizer=normalizer, **kwargs)
        if self.source != "student":
            raise ValueError(f"FeatureImitation.source is {self.source!r}, which has no features: expected 'student'.")

    def check_pair(self, source: OutputSpec, teacher: OutputSpec) -> None:
        if source.feature_channels != teacher.feature_channels:
            raise ValueError(
                f"FeatureImitation needs features of one width, but {self.source} ({source.family}) has "
                f"{source.feature_channels} channels and the teacher ({teacher.family}) {teacher.feature_channels}: "
                "set the student's backbone.out_channels to the teacher's, or set this loss to null."
            )

    def prepare_region(self, region: Sequence[Tensor]) -> list[Tensor]:
        """One weight a cell, (N, 1, H, W) per level: the largest of its anchors' (N, A, H, W)."""
        return [weight.amax(dim=1, keepdim=True) for weight in region]

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region`, (N, 1, H, W)."""
        if region.shape[1] != 1:
            raise ValueError(
                f"FeatureImitation.level_loss takes one weight a cell, (N, 1, H, W), found {tuple(region.shape)}: "
                "pass the region through prepare_region."
            )
        maps = (output.features[level].unsqueeze(1) for output in (source, teacher))
        region, student, teacher_map = drop_unweighted(region, *maps)
        return feature_imitation(student.squeeze(1), teacher_map.squeeze(1), weight=region.squeeze(1), reduction="sum")
