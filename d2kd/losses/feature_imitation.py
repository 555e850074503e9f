"""Feature imitation: squared difference of the pyramid's features in a region."""

from __future__ import annotations

from torch import Tensor

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.kernel import (
    check_floating,
    check_reduction,
    check_weight,
    compute_dtype,
    drop_unweighted,
    weigh_and_reduce,
)
from d2kd.structures import DenseOutput

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
            f"{tuple(student.shape)} and {tuple(teacher.shape)}; another width needs a projector first"
        )
    check_floating("feature_imitation", student=student, teacher=teacher)
    check_reduction("feature_imitation", reduction, ("none", "sum", "mean"))
    check_weight("feature_imitation", weight, (len(student), *student.shape[2:]), "the maps' shape without channels")
    dtype = compute_dtype(student, teacher)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    return weigh_and_reduce(difference.square().mean(dim=1), weight, reduction)


@LOSS_REGISTRY.register()
class FeatureImitation(FeatureLoss):
    """
    :func:`feature_imitation` over the maps that the heads were given.

    LD's code takes the mean over the region's cells, level by level: ``normalizer="level_locations"``, the default.

    Args:
        kwargs: see :class:`FeatureLoss`.
    """

    def level_loss(self, source: DenseOutput, teacher: DenseOutput, level: int, region: Tensor) -> Tensor:
        """``region``: one level of :meth:`prepare_region`, (N, 1, H, W)."""
        self.cell_weights(region)
        maps = (x.unsqueeze(1) for x in self.feature_maps(source, teacher, level))
        region, student, teacher_map = drop_unweighted(region, *maps)
        return feature_imitation(student.squeeze(1), teacher_map.squeeze(1), weight=region.squeeze(1), reduction="sum")
