"""How hard each distillation term pulls at the student, beside its detection losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["gradient_shares"]

#: What losses are multiplied by while shares are measured, exactly: in fp16 a gradient that is not scaled may vanish.
_LOSS_SCALE = 2.0**12


def gradient_shares(losses: Mapping[str, Tensor], features: Sequence[Tensor]) -> dict[str, Tensor]:
    """
    The norm of each distillation term's gradient at the student's FPN outputs, as a share of the norm of the detection
    losses' gradient there. All levels count together, and all ranks: every rank must call it.

    The graph is kept, no ``.grad`` is written, and no hook of a parameter runs. It costs a backward pass through the
    heads, without their weights' gradients, for each term and one for the detection losses.

    Args:
        losses: as :meth:`DistilledDetector.forward` returns them.
        features: the maps that the student's head was given, in the graph of ``losses``.

    Returns:
        for each ``loss_kd_<name>`` its share by ``name``, a scalar; NaN where the detection losses have no gradient, or
        another rank could not measure.

    Raises:
        RuntimeError: a part of the graph refuses two backward passes, or one that ends at the features: compiled
            modules, reentrant checkpoints.
        ValueError: no feature is in a graph.
    """
    detection = [value for name, value in losses.items() if not name.startswith("loss_kd_")]
    terms = {name.removeprefix("loss_kd_"): value for name, value in losses.items() if name.startswith("loss_kd_")}
    error: Exception | None = None
    try:
        in_graph = [x for x in features if x.requires_grad]
        if not in_graph:
            raise ValueError("the features that the student's head is given need no gradient (a frozen backbone)")
        squares = torch.stack([_squared_norm(x, in_graph) for x in (torch.stack(detection).sum(), *terms.values())])
    except (RuntimeError, ValueError) as raised:
        error, squares = raised, features[0].new_full((1 + len(terms),), torch.nan, dtype=torch.float32)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(squares)
    if error is not None:
        raise error
    norms = squares.sqrt()
    return dict(zip(terms, torch.where(norms[0] > 0, norms[1:] / norms[0], torch.nan)))


def _squared_norm(loss: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Of the gradient of ``loss`` at ``features``."""
    if not loss.requires_grad:
        return loss.new_zeros((), dtype=torch.float32)
    scale = torch.full_like(loss, _LOSS_SCALE)
    grads = torch.autograd.grad(loss, features, scale, retain_graph=True, allow_unused=True)
    norms = [x.float().norm() / _LOSS_SCALE for x in grads if x is not None]
    return torch.stack(norms).square().sum() if norms else loss.new_zeros((), dtype=torch.float32)
