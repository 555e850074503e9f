"""The FPN's two coarsest levels as GFL and ATSS have them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor
from torch.nn import functional as F

__all__ = ["P6P7", "build_resnet_fpn_p6p7_backbone", "build_resnet_fpn_relu_p6p7_backbone"]


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


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN whose P6 and P7 are made from P5 without a ReLU between them, as GFL's and ATSS's."""
    return _resnet_fpn(cfg, input_shape, relu_before_p7=False)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_relu_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with a ReLU between them, as FCOS's."""
    return _resnet_fpn(cfg, input_shape, relu_before_p7=True)


def _resnet_fpn(cfg: CfgNode, input_shape: ShapeSpec, *, relu_before_p7: bool) -> FPN:
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=P6P7(channels, channels, in_feature="p5", relu_before_p7=relu_before_p7),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
