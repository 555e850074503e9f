"""A module that has a detector's parameters and modules under the detector's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

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


#: The one child that the student does not have.
_OWN_CHILD = "distillation"


class AdoptedStudent(nn.Module):
    """
    Registers the student's own children, and keeps the student itself out of the module tree: ``state_dict()``,
    ``named_parameters()`` and ``named_modules()`` are the student's, without any being overridden.

    A project's code that is given this model in place of the student finds the student's attributes here, and sets them
    here: what this class and its subclasses do not have is read from the student, and set on it. A subclass registers
    its child "distillation" last: until then it sets attributes of its own.

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
            if name == _OWN_CHILD:
                raise ValueError("The student has a child named 'distillation', a name that d2kd uses: rename it.")
            self.add_module(name, child)
        object.__setattr__(self, "_student", detector)

    @property
    def student(self) -> DenseDetector:
        """The plain detector, looking at this model's modules (they may have been replaced since, e.g. by SyncBN)."""
        _copy_children(self._modules, self._student._modules)
        return self._student

    def __getattr__(self, name: str) -> Any:
        """Called where this model has no such attribute: that of the student."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Special methods are those of classes; and there is no student yet while a copy is made.
            if name.startswith("__") or "_student" not in self.__dict__:
                raise
        return getattr(self.student, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """
        Set the student's attribute where this model has none of that name, and both where both have it: a value that
        the student does not see would change nothing.

        Raises:
            AttributeError: one that this model computes, such as ``losses``: set the student's, ``model.student``.
        """
        if _OWN_CHILD not in self.__dict__.get("_modules", ()) or name == _OWN_CHILD:
            super().__setattr__(name, value)
            return
        is_own = name in self.__dict__ or hasattr(type(self), name)
        if is_own:
            super().__setattr__(name, value)
        if not is_own or (name in vars(self._student) and not name.startswith("_")):
            student = self.student
            setattr(student, name, value)
            _copy_children(student._modules, self._modules)

    @property
    def device(self) -> torch.device:
        return self._student.device

    def train(self: T, mode: bool = True) -> T:
        super().train(mode)
        self.student.train(mode)
        return self


def _copy_children(source: Mapping[str, nn.Module | None], target: dict[str, nn.Module | None]) -> None:
    """Give ``target`` the student's children in ``source``, in place: others may be iterating over those that stay."""
    for name in [name for name in target if name not in source and name != _OWN_CHILD]:
        del target[name]
    target.update({name: child for name, child in source.items() if name != _OWN_CHILD})
