"""Layers that configs name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FrozenStatisticsBatchNorm2d", "P6P7", "Scale", "group_norm"]


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


class P6P7(LastLevelP6P7):
    """
    The two coarsest FPN levels, each a 3x3 convolution of stride 2. Detectron2's own ``LastLevelP6P7`` always has a
    ReLU between them; among OpenMMLab's detectors only FCOS does.

    Args:
        in_channels: of ``in_feature``.
        out_channels: of P6 and P7.
        in_feature: what P6 is made from: "p5" (GFL, ATSS, FCOS) or "res5" (RetinaNet).
        relu_before_p7: whether P7 is made from ReLU(P6) instead of P6.
    """

    def __init__(
        self, in_channels: int, out_channels: int, in_feature: str = "p5", relu_before_p7: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, in_feature)
        self.relu_before_p7 = relu_before_p7

    def forward(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6) if self.relu_before_p7 else p6)]


class Scale(nn.Module):
    """Multiplies its input by one learned number, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
