"""Norms for Detectron2's ``norm=`` arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FrozenStatisticsBatchNorm2d", "group_norm"]


def group_norm(num_groups: int) -> Callable[[int], nn.Module]:
    """A norm for Detectron2's ``norm=`` arguments; its own "GN" always has 32 groups.

    Args:
        num_groups: must divide the channels of the layers that it follows.
    """
    return partial(nn.GroupNorm, num_groups)


class FrozenStatisticsBatchNorm2d(nn.BatchNorm2d):
    """
    Batch norm that always normalises with its running statistics, which it never updates, while its affine parameters
    are trained: how OpenMMLab trains detectors on ImageNet backbones (``norm_eval``). Detectron2's "FrozenBN" freezes
    the affine parameters as well.

    For Detectron2's ``norm=`` arguments: pass the class. In the stages that ``ResNet.freeze`` freezes it becomes
    FrozenBN, like any batch norm. Keys as ``BatchNorm2d``. Not for
    ``SyncBatchNorm.convert_sync_batchnorm``, which would replace it by one whose statistics move.

    Args:
        num_features: channels.
        eps: added to the variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
