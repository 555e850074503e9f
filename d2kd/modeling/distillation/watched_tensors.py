"""What has to change while a model is trained, and what must not; no step waits for the device for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor

__all__ = ["Snapshot", "TeacherWatch"]


class Snapshot:
    """
    Parameters at one moment, to see later which of them have changed. Torch counts the changes in place of a tensor,
    but fused optimizers do not: for these a copy is kept, of the ``copies`` smallest.
    """

    def __init__(self, parameters: Mapping[str, Tensor], copies: int) -> None:
        self._now = dict(parameters)
        self._versions = {name: _version(x) for name, x in parameters.items()}
        smallest = sorted(parameters, key=lambda name: parameters[name].numel())[:copies]
        self._copies = {name: parameters[name].detach().clone() for name in smallest}

    def __len__(self) -> int:
        return len(self._now)

    def unmoved(self) -> list[str]:
        """Names of those that are what they were. Waits for the device, if some have not changed by count."""
        same = [name for name, x in self._now.items() if _version(x) == self._versions[name]]
        compared = [name for name in same if name in self._copies]
        if not compared:
            return same
        differ = torch.stack([(self._now[name].detach() != self._copies[name]).any() for name in compared])
        moved = {name for name, flag in zip(compared, differ.tolist()) if flag}
        return [name for name in same if name not in moved]

    def has_moved(self) -> bool:
        """Whether any is not what it was."""
        return len(self.unmoved()) < len(self._now)


class TeacherWatch:
    """A loaded teacher, which must stay what it was: frozen, in eval mode, with its weights."""

    def __init__(self, detector: DenseDetector) -> None:
        self.detector = detector
        self._modules = dict(detector.named_modules())
        self._parameters = dict(detector.named_parameters())
        self._tensors = detector.state_dict(keep_vars=True)
        self._versions = {name: _version(x) for name, x in self._tensors.items()}

    def check(self) -> None:
        """
        Raises:
            ValueError: a module is in training mode, a parameter requires gradient, or a weight or statistic changed.
        """
        training = [name for name, module in self._modules.items() if module.training]
        if training:
            raise ValueError(
                f"{len(training)} of the teacher's {len(self._modules)} modules are in training mode (first "
                f"{training[0]!r}), expected all in eval mode: something called train() on the module that was given "
                "as model.teacher.model. Give the teacher a module of its own (copy.deepcopy), or its config and "
                "checkpoint."
            )
        trainable = [name for name, x in self._parameters.items() if x.requires_grad]
        if trainable:
            raise ValueError(
                f"{len(trainable)} of the teacher's {len(self._parameters)} parameters require gradient (first "
                f"{trainable[0]!r}), expected none: something called requires_grad_() on the module that was given as "
                "model.teacher.model. Give the teacher a module of its own (copy.deepcopy), or its config and "
                "checkpoint."
            )
        changed = [name for name, x in self._tensors.items() if _version(x) != self._versions[name]]
        if changed:
            raise ValueError(
                f"{len(changed)} of the teacher's {len(self._tensors)} weights and statistics were changed since it "
                f"was loaded (first {changed[0]!r}): something trains or loads the module that was given as "
                "model.teacher.model. Give the teacher a module of its own (copy.deepcopy), or its config and "
                "checkpoint."
            )


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version
