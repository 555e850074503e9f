"""Feature imitation: squared difference of the pyramid's features in a region."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from d2kd.losses.base import LOSS_REGISTRY
from d2kd.losses.feature import FeatureLoss
from d2kd.losses.kernel import check_inputs, check_maps, compute_dtype, drop_unweighted, weigh_and_reduce
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

    Args:
        student: (N, C, H, W).
        teacher: same shape.
        weight, reduction: see :mod:`d2kd.losses`; a location is a cell.

    Returns:
        The loss in the squared unit of the features, (N, H, W) or summed.

    Example:
        >>> import torch
        >>> student, teacher = torch.ones(1, 2, 1, 2), torch.tensor([1.0, 2, 3, 4]).view(1, 2, 1, 2)
        >>> feature_imitation(student, teacher)
        tensor([[[2., 5.]]])
    """
    caller = "feature_imitation"
    check_maps(caller, student=student, teacher=teacher)
    check_inputs(caller, 1, student=student, teacher=teacher)
    dtype = compute_dtype(student, teacher)
    squares = F.mse_loss(student.to(dtype), teacher.detach().to(dtype), reduction="none")
    return weigh_and_reduce(caller, squares.mean(dim=1), weight, reduction)


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
