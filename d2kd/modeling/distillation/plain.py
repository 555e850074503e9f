"""The plain detector inside a distilled one."""

from __future__ import annotations

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from d2kd.modeling.distillation.distilled_detector import DistilledDetector

__all__ = ["student"]


def student(model: nn.Module) -> DenseDetector:
    """
    The plain detector that ``model`` trains: what Detectron2's own tools, exporters and isinstance checks expect.

    It is no copy: it has the same parameters and buffers, and is in the same mode (call ``eval()`` before inference).
    For a detector that outlives further training take ``copy.deepcopy(d2kd.student(model))``.

    Args:
        model: a :class:`DistilledDetector` or a plain detector (returned as it is), also inside
            ``DistributedDataParallel`` or ``DataParallel``.

    Raises:
        TypeError: anything else; it says what was found.
    """
    inner = model
    while isinstance(inner, (DistributedDataParallel, DataParallel)):
        inner = inner.module
    if isinstance(inner, DistilledDetector):
        return inner.student
    if isinstance(inner, DenseDetector):
        return inner
    found = type(model).__name__ + ("" if inner is model else f" around a {type(inner).__name__}")
    raise TypeError(
        f"d2kd.student() was given a {found}, expected a DistilledDetector or a plain Detectron2 DenseDetector such as "
        "RetinaNet, also inside DistributedDataParallel."
    )
