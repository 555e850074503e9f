"""GFL's "general distribution", a distribution of distances for each side of a box, for any dense detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from d2kd.losses.kernel import compute_dtype
from d2kd.modeling.detectors.interface import reg_max_of, strides_of

__all__ = ["DistributionBoxes", "expected_distances"]


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


class _Kept(FunctionCtx):
    """What the forward pass keeps for the backward pass."""

    dim: int
    saved_tensors: tuple[Tensor, Tensor]


class _ExpectedDistances(torch.autograd.Function):
    """dE/dlogit_j = p_j (j - E)."""

    @staticmethod
    def forward(ctx: _Kept, logits: Tensor, dim: int) -> Tensor:
        probs, bins = _probs_and_bins(logits, dim)
        expectation = probs.mul_(bins).sum(dim)
        ctx.save_for_backward(logits, expectation)
        ctx.dim = dim
        return expectation

    @staticmethod
    @once_differentiable
    def backward(ctx: _Kept, grad_output: Tensor) -> tuple[Tensor, None]:
        logits, expectation = ctx.saved_tensors
        probs, bins = _probs_and_bins(logits, ctx.dim)
        grad = probs.mul_(bins - expectation.unsqueeze(ctx.dim)).mul_(grad_output.unsqueeze(ctx.dim))
        return grad.to(logits.dtype), None


class DistributionBoxes(DenseDetector):
    """
    A dense detector whose head predicts a distribution for each side of a box (``head.reg_max``).

    A class that derives from it and from a detector names it first. Where that detector reads its head's box
    predictions, it finds the expected distances to the four sides in pixels, which it decodes from the anchor's
    centre; nothing else of it changes. The class's constructor calls the detector's with
    :meth:`distribution_arguments`.
    """

    @classmethod
    def distribution_arguments(cls, head: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """
        A detector's arguments with this head and with a box transform that decodes distances.

        Args:
            head: predicts distributions: :class:`DenseHead` with ``reg_max``.
            arguments: the detector's other arguments, without ``box2box_transform``.

        Raises:
            ValueError: a head without ``reg_max``.
            TypeError: a ``box2box_transform``.
        """
        cls._reg_max_of(head)
        if "box2box_transform" in arguments:
            raise TypeError(f"{cls.__name__} decodes distances itself: remove box2box_transform from its config.")
        return {"head": head, "box2box_transform": Box2BoxTransformLinear(normalize_by_size=False), **arguments}

    @classmethod
    def _reg_max_of(cls, head: nn.Module) -> int:
        reg_max = reg_max_of(head)
        if reg_max is None:
            raise ValueError(
                f"{cls.__name__} needs a head that predicts a distribution for each side of a box, found "
                f"{type(head).__name__} without reg_max: give it a DenseHead with reg_max (the papers: 16)."
            )
        return reg_max

    @property
    def bins(self) -> int:
        """n + 1, the bins of each side's distribution."""
        return self._reg_max_of(self.head) + 1

    def split_bins(self, distributions: Sequence[Tensor]) -> list[Tensor]:
        """Per level, the head's (N, A*4*(n+1), H, W) as views of shape (N, A, 4, n+1, H, W)."""
        return [x.unflatten(1, (-1, 4, self.bins)) for x in distributions]

    def distances(self, distributions: Sequence[Tensor]) -> list[Tensor]:
        """Per level, the head's (N, A*4*(n+1), H, W) -> (N, A*4, H, W), expected distances in pixels."""
        levels = zip(self.split_bins(distributions), strides_of(self), strict=True)
        return [(expected_distances(x, dim=3) * stride).flatten(1, 2) for x, stride in levels]

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        # Where Detectron2's detectors, and AssignedDetector, take up the head's predictions.
        logits, distributions, *rest = predictions
        return super()._transpose_dense_predictions([logits, self.distances(distributions), *rest], dims_per_anchor)
