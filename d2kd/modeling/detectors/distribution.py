"""GFL's "general distribution", a distribution of distances for each side of a box, for any dense detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import compute_dtype
from d2kd.modeling.detectors.atss import ATSS
from d2kd.modeling.detectors.base import check_strides

__all__ = [
    "DistributionATSS",
    "DistributionBoxes",
    "DistributionFCOS",
    "DistributionRetinaNet",
    "expected_distances",
]


def expected_distances(logits: Tensor, *, dim: int = -1) -> Tensor:
    """
    The mean of the distribution of softmax(logits) over bins 0 to n: the integral of "Generalized Focal Loss" (NeurIPS
    2020).

    Keeps its input only for the backward pass, in the dtype it came in. Computed in float32 whatever the input dtype
    or autocast (float64 stays float64).

    Args:
        logits: any shape with the n + 1 bins on axis ``dim``.
        dim: the axis of the bins.

    Returns:
        distances in bins (strides of the level), within [0, n] to rounding, the input's shape without ``dim``.
    """
    dim = dim % logits.dim()
    # An autograd.Function cannot be exported by torch.jit.trace, nor is it needed there.
    if torch.jit.is_tracing() or not (torch.is_grad_enabled() and logits.requires_grad):
        probs, bins = _probs_and_bins(logits, dim)
        return (probs * bins).sum(dim)
    return _ExpectedDistances.apply(logits, dim)


def _probs_and_bins(logits: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    probs = logits.to(compute_dtype(logits)).softmax(dim)
    bins = torch.arange(logits.shape[dim], device=logits.device, dtype=probs.dtype)
    return probs, bins.view(-1, *[1] * (logits.dim() - dim - 1))


class _ExpectedDistances(torch.autograd.Function):
    """dE/dlogit_j = p_j (j - E)."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, dim: int) -> Tensor:
        probs, bins = _probs_and_bins(logits, dim)
        expectation = probs.mul_(bins).sum(dim)
        ctx.save_for_backward(logits, expectation)
        ctx.dim = dim
        return expectation

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None]:
        logits, expectation = ctx.saved_tensors
        probs, bins = _probs_and_bins(logits, ctx.dim)
        grad = probs.mul_(bins - expectation.unsqueeze(ctx.dim)).mul_(grad_output.unsqueeze(ctx.dim))
        return grad.to(logits.dtype), None


class DistributionBoxes:
    """
    Mixin of a dense detector whose head predicts a distribution for each side of a box (``head.reg_max``).

    Where the detector reads its head's box predictions, it finds the expected distances to the four sides in pixels,
    which it decodes from the anchor's centre; nothing else of it changes.

    Args:
        head: predicts distributions: :class:`DenseHead` with ``reg_max``.
        kwargs: the detector's own, without ``box2box_transform``.

    Raises:
        ValueError: a head without ``reg_max``, or an anchor generator of other strides than the backbone's.
        TypeError: a ``box2box_transform``.
    """

    predicts_distributions = True

    def __init__(self, *, head: nn.Module, **kwargs: Any) -> None:
        name = type(self).__name__
        if getattr(head, "reg_max", None) is None:
            raise ValueError(
                f"{name} needs a head that predicts a distribution for each side of a box, found "
                f"{type(head).__name__} without reg_max: give it a DenseHead with reg_max (the papers: 16)."
            )
        if "box2box_transform" in kwargs:
            raise TypeError(f"{name} decodes distances itself: remove box2box_transform from its config.")
        super().__init__(head=head, box2box_transform=Box2BoxTransformLinear(normalize_by_size=False), **kwargs)
        check_strides(self)

    def _transpose_dense_predictions(
        self, predictions: Sequence[Sequence[Tensor]], dims_per_anchor: Sequence[int]
    ) -> list[list[Tensor]]:
        logits, distributions, *rest = predictions
        distances = [
            (expected_distances(x.unflatten(1, (-1, 4, self.head.reg_max + 1)), dim=3) * stride).flatten(1, 2)
            for x, stride in zip(distributions, self.anchor_generator.strides, strict=True)
        ]
        return super()._transpose_dense_predictions([logits, distances, *rest], dims_per_anchor)


class DistributionRetinaNet(DistributionBoxes, RetinaNet):
    """
    Detectron2's RetinaNet with distributions for boxes, as LD's (arXiv:2204.05957): GIoU of the decoded
    boxes; no quality or distribution focal loss.

    Args:
        box_loss_weight: of the GIoU loss.
        kwargs: Detectron2's ``RetinaNet``'s, without ``box2box_transform`` and ``box_reg_loss_type``.

    Raises:
        ValueError: a head without ``reg_max``.
        TypeError: one of the two arguments above.
    """

    def __init__(self, *, box_loss_weight: float = 2.0, **kwargs: Any) -> None:
        if "box_reg_loss_type" in kwargs:
            raise TypeError("DistributionRetinaNet's box loss is GIoU: remove box_reg_loss_type from its config.")
        super().__init__(box_reg_loss_type="giou", **kwargs)
        self.box_loss_weight = box_loss_weight

    def losses(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().losses(*args, **kwargs)
        losses["loss_box_reg"] = losses["loss_box_reg"] * self.box_loss_weight
        return losses


class DistributionFCOS(DistributionBoxes, FCOS):
    """
    Detectron2's FCOS with distributions for boxes; no quality or distribution focal loss.

    Args:
        box_loss_weight: of the GIoU loss.
        kwargs: Detectron2's ``FCOS``'s, without ``box2box_transform``.

    Raises:
        ValueError: a head without ``reg_max``.
        TypeError: a ``box2box_transform``.
    """

    def __init__(self, *, box_loss_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.box_loss_weight = box_loss_weight

    def losses(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().losses(*args, **kwargs)
        losses["loss_fcos_loc"] = losses["loss_fcos_loc"] * self.box_loss_weight
        return losses


class DistributionATSS(DistributionBoxes, ATSS):
    """
    :class:`ATSS` with distributions for boxes; no quality or distribution focal loss.

    Args:
        kwargs: :class:`ATSS`'s, without ``box2box_transform``.

    Raises:
        ValueError: a head without ``reg_max``.
        TypeError: a ``box2box_transform``.
    """
