"""Detectron2's RetinaNet and FCOS, and ATSS, with distributions for boxes."""

from __future__ import annotations

from typing import Any

from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor, nn

from d2kd.modeling.detectors.atss import ATSS
from d2kd.modeling.detectors.distribution import DistributionBoxes
from d2kd.modeling.detectors.interface import check_strides

__all__ = ["DistributionATSS", "DistributionFCOS", "DistributionRetinaNet"]


class DistributionRetinaNet(DistributionBoxes, RetinaNet):
    """
    Detectron2's RetinaNet with distributions for boxes, as LD's (arXiv:2204.05957): GIoU of the decoded
    boxes; no quality or distribution focal loss.

    Args:
        head: predicts distributions: :class:`DenseHead` with ``reg_max``.
        box_loss_weight: of the GIoU loss.
        kwargs: Detectron2's ``RetinaNet``'s, without ``box2box_transform`` and ``box_reg_loss_type``.

    Raises:
        ValueError: a head without ``reg_max``, or an anchor generator of other strides than the backbone's.
        TypeError: one of the two arguments that it does without.
    """

    def __init__(self, *, head: nn.Module, box_loss_weight: float = 2.0, **kwargs: Any) -> None:
        if "box_reg_loss_type" in kwargs:
            raise TypeError("DistributionRetinaNet's box loss is GIoU: remove box_reg_loss_type from its config.")
        super().__init__(box_reg_loss_type="giou", **self.distribution_arguments(head, kwargs))
        check_strides(self)
        self.box_loss_weight = box_loss_weight

    def losses(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().losses(*args, **kwargs)
        losses["loss_box_reg"] = losses["loss_box_reg"] * self.box_loss_weight
        return losses


class DistributionFCOS(DistributionBoxes, FCOS):
    """
    Detectron2's FCOS with distributions for boxes; no quality or distribution focal loss.

    Args:
        head: predicts distributions: :class:`DenseHead` with ``reg_max``.
        box_loss_weight: of the GIoU loss.
        kwargs: Detectron2's ``FCOS``'s, without ``box2box_transform``.

    Raises:
        ValueError: a head without ``reg_max``.
        TypeError: a ``box2box_transform``.
    """

    def __init__(self, *, head: nn.Module, box_loss_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**self.distribution_arguments(head, kwargs))
        self.box_loss_weight = box_loss_weight

    def losses(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().losses(*args, **kwargs)
        losses["loss_fcos_loc"] = losses["loss_fcos_loc"] * self.box_loss_weight
        return losses


class DistributionATSS(DistributionBoxes, ATSS):
    """
    :class:`ATSS` with distributions for boxes; no quality or distribution focal loss.

    Args:
        head: predicts distributions: :class:`DenseHead` with ``reg_max``.
        kwargs: :class:`ATSS`'s, without ``box2box_transform``.

    Raises:
        ValueError: a head without ``reg_max``.
        TypeError: a ``box2box_transform``.
    """

    def __init__(self, *, head: nn.Module, **kwargs: Any) -> None:
        super().__init__(**self.distribution_arguments(head, kwargs))
