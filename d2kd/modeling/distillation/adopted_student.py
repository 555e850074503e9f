"""A module that has a detector's parameters and modules under the detector's own names."""

from __future__ import annotations

from typing import TypeVar

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

__all__ = ["AdoptedStudent"]

T = TypeVar("T", bound="AdoptedStudent")

#: The student's own tables: what it holds beside its children is moved, cast, saved and loaded with this module.
_ADOPTED = (
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class AdoptedStudent(nn.Module):
    """
    Registers the student's own children, and keeps the student itself out of the module tree: ``state_dict()``,
    ``named_parameters()`` and ``named_modules()`` are the student's, without any being overridden.

    Args:
        detector: the student.

    Raises:
        ValueError: it has a child named "distillation", which is the name of what is trained beside it.
    """

    pixel_mean: Tensor
    _student: DenseDetector

    def __init__(self, detector: DenseDetector) -> None:
        super().__init__()
        for table in _ADOPTED:
            setattr(self, table, getattr(detector, table))
        for name, child in detector._modules.items():  # with those that are None, or have two names
            if name == "distillation":
                raise ValueError("The student has a child named 'distillation', a name that d2kd uses: rename it.")
            self.add_module(name, child)
        object.__setattr__(self, "_student", detector)

    @property
    def student(self) -> DenseDetector:
        """The plain detector, looking at this model's modules (they may have been replaced since, e.g. by SyncBN)."""
        for name in self._student._modules:
            self._student._modules[name] = self._modules[name]
        return self._student

    @property
    def device(self) -> torch.device:
        return self._student.device

    def train(self: T, mode: bool = True) -> T:
        super().train(mode)
        self.student.train(mode)
        return self
