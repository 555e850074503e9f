"""A temperature that is learned against the student: CTKD's, for FTPD's localisation term."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from d2kd.losses.kernel import Context

__all__ = ["LearnedTemperature", "adversarial_factor"]


def adversarial_factor(iteration: int, learn_iters: int) -> float:
    """
    What the gradient into theta is multiplied by: from 0 at the first step along a cosine to -1 after ``learn_iters``,
    and -1 from then on. Negative: the optimiser raises the loss that it lowers with all other parameters.

    Args:
        iteration: the step, from 0.
        learn_iters: steps until -1; 0: at once.
    """
    if iteration >= learn_iters:
        return -1.0
    return (math.cos(math.pi * iteration / learn_iters) - 1) / 2


class LearnedTemperature(nn.Module):
    """
    T = t_start + t_span * sigmoid(theta), with the gradient into theta multiplied by :func:`adversarial_factor`.

    The global temperature of "Curriculum Temperature for Knowledge Distillation" (CTKD, AAAI 2023), whose code has
    theta = 1 at the start, t_start = 1, t_span = 20. There the factor falls over the first 10 epochs (CIFAR) or 5
    (ImageNet).

    Args:
        learn_iters: steps over which the factor falls to -1, >= 0.
        t_start: T lies above it, > 0.
        t_span: and below t_start + t_span; > 0.
    """

    def __init__(self, *, learn_iters: int, t_start: float, t_span: float) -> None:
        super().__init__()
        self.learn_iters = learn_iters
        self.t_start = t_start
        self.t_span = t_span
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, iteration: int) -> Tensor:
        """T, a scalar, at a step counted from 0."""
        theta = _ScaleGradient.apply(self.theta, adversarial_factor(iteration, self.learn_iters))
        return self.t_start + self.t_span * theta.sigmoid()


class _ScaleGradient(torch.autograd.Function):
    """The input itself, its gradient times ``factor``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Context, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.factor, None
