"""A temperature that is learned against the student: CTKD's, for FTPD's localisation terms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from d2kd.losses.kernel import check_number

__all__ = ["LEARNED_PER", "LearnedTemperature", "adversarial_factor"]

#: What has a temperature of its own: nothing (one for all), an edge of the box, a level of the pyramid.
LEARNED_PER = ("scalar", "edge", "level")


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
    T = t_start + t_span * sigmoid(theta), with the gradient into theta reversed by and by.

    The global temperature of "Curriculum Temperature for Knowledge Distillation" (CTKD, AAAI 2023), whose code has
    theta = 1 at the start, t_start = 1, t_span = 20. There the factor falls over the first 10 epochs (CIFAR) or 5
    (ImageNet). A temperature per edge or per level is this library's.

    Args:
        owner: the loss that has these fields, for errors.
        per: one of :data:`LEARNED_PER`.
        num_levels: levels of the pyramid; needed with ``per="level"``.
        learn_iters: steps over which the factor falls to -1, see :func:`adversarial_factor`.
        t_start: T lies above it, > 0.
        t_span: and below t_start + t_span; > 0.

    Raises:
        ValueError: an unknown ``per``, "level" without a number of levels, a number out of its range.
    """

    def __init__(
        self, *, owner: str, per: str, num_levels: int | None, learn_iters: int, t_start: float, t_span: float
    ) -> None:
        super().__init__()
        if per not in LEARNED_PER:
            raise ValueError(f"{owner}.per is {per!r}, expected one of {', '.join(LEARNED_PER)}.")
        for field, value, least, optional in (
            ("num_levels", num_levels, 1, True),
            ("learn_iters", learn_iters, 0, False),
        ):
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{owner}.{field} is {value!r}, expected a whole number of at least {least}.")
        if per == "level" and num_levels is None:
            raise ValueError(
                f"{owner}.num_levels is None, expected the number of pyramid levels, which per='level' needs."
            )
        check_number(owner, "t_start", t_start)
        check_number(owner, "t_span", t_span)
        self.owner = owner
        self.per = per
        self.learn_iters = learn_iters
        self.t_start = t_start
        self.t_span = t_span
        shape = {"scalar": (), "edge": (4,), "level": (num_levels,)}[per]
        self.theta = nn.Parameter(torch.ones(shape))

    def forward(self, *, level: int, iteration: int) -> Tensor:
        """
        Args:
            level: of the pyramid, from 0.
            iteration: the step, from 0.

        Returns:
            T as a scalar, or (4,) for left, top, right, bottom.

        Raises:
            ValueError: a level beyond ``num_levels``.
        """
        theta = _ScaleGradient.apply(self.theta, adversarial_factor(iteration, self.learn_iters))
        if self.per == "level":
            if level >= len(theta):
                raise ValueError(
                    f"{self.owner}.num_levels is {len(theta)}, but the detectors have a level {level} (from 0): set it "
                    "to the number of their levels."
                )
            theta = theta[level]
        return self.t_start + self.t_span * theta.sigmoid()

    def extra_repr(self) -> str:
        return f"theta={tuple(self.theta.shape)}"


class _ScaleGradient(torch.autograd.Function):
    """The input itself, its gradient times ``factor``."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.factor, None
