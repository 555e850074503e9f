"""Why a step is not finite: its labels first, then the teacher, then the student."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from d2kd.structures import DenseOutput

__all__ = ["NonFiniteError", "StepEvidence", "label_faults"]

_HUGE = 1e6  # a weight of a network that is trained is below 100
_AT_MOST = 8  # images that a sentence names


class NonFiniteError(FloatingPointError):
    """Values of this rank's own step that are not finite. Other ranks raise a FloatingPointError of the same text."""


@dataclass(frozen=True)
class StepEvidence:
    """
    What is looked at where a step is not finite.

    Attributes:
        batch: this rank's images.
        iteration: of the run.
        student: the detector that is trained.
        teacher: the one that teaches it, if any.
        teacher_output: what it said about the batch.
    """

    batch: Sequence[Mapping[str, Any]]
    iteration: int
    student: nn.Module
    teacher: nn.Module | None = None
    teacher_output: DenseOutput | None = None

    def error(self, names: str, found: str = "") -> NonFiniteError:
        """
        Args:
            names: what is not finite.
            found: what the caller knows of it beside, in words.
        """
        files = [_name(item) for item in self.batch]
        shown = ", ".join(files[:_AT_MOST]) + (f" and {len(files) - _AT_MOST} more" if len(files) > _AT_MOST else "")
        return NonFiniteError(
            f"Not finite: {names}. Iteration {self.iteration}, rank {comm.get_rank()}: {found}{self.cause()}"
            + (f" Images: {shown}." if files else "")
        )

    def cause(self) -> str:
        """What explains it, and what to change."""
        faults = label_faults(self.batch)
        if faults:
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            return f"{'; '.join(faults[:3])}{more}: correct or drop these first."
        if self.teacher is not None:
            weights = _not_finite(self.teacher.state_dict().items())
            if weights:
                return (
                    f"the teacher has {len(weights)} weights or statistics that are not finite (first {weights[0]!r}): "
                    "its checkpoint (model.teacher.checkpoint) is broken."
                )
            outputs = [] if self.teacher_output is None else _outputs_not_finite(self.teacher_output)
            if outputs:
                return (
                    f"the teacher's {' and '.join(outputs)} are not finite, though its weights and the labels are: set "
                    "model.teacher.precision=fp32, and look at these images and the teacher's pixel_mean and pixel_std."
                )
        # Not the statistics of batch norm: this step has changed them already.
        weights = _not_finite(self.student.named_parameters())
        large = [name for name, x in self.student.named_parameters() if x.numel() and x.abs().max() > _HUGE]
        if large and not weights:
            return (
                f"{len(large)} of the student's weights are huge (above {_HUGE:g}, first {large[0]!r}), so an earlier "
                "step was too long: lower a weight of model.losses that is far above the others, or the learning rate "
                "(optimizer.lr), or clip gradients (train.clip_grad)."
            )
        of_teacher = ", the teacher" if self.teacher is not None else ""
        found = f"the labels{of_teacher} and the student's weights are in order"
        if weights:
            found = f"{len(weights)} of the student's weights are not finite (first {weights[0]!r})"
        return (
            f"{found}: lower the learning rate (optimizer.lr), clip gradients (train.clip_grad) or train without fp16 "
            "(train.amp)."
        )


def label_faults(batch: Iterable[Mapping[str, Any]]) -> list[str]:
    """
    What is wrong with a batch's images and boxes, an entry each: values that are not finite, inverted boxes, boxes
    without area.
    """
    faults = []
    for item in batch:
        if item["image"].is_floating_point() and not item["image"].isfinite().all():
            faults.append(f"{_name(item)} has pixels that are not finite")
        if "instances" not in item:
            continue
        for box in item["instances"].gt_boxes.tensor.tolist():
            x0, y0, x1, y1 = box
            kind = None
            if not torch.tensor(box).isfinite().all():
                kind = "that is not finite"
            elif x1 < x0 or y1 < y0:
                kind = "that is inverted"
            elif x1 == x0 or y1 == y0:
                kind = "without area"
            if kind is not None:
                faults.append(f"{_name(item)} has a box {kind}, {[round(x, 2) for x in box]} (x0, y0, x1, y1)")
    return faults


def _name(item: Mapping[str, Any]) -> str:
    return str(item.get("file_name") or item.get("image_id", "an image without file_name"))


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, x in tensors if x.is_floating_point() and not x.isfinite().all()]


def _outputs_not_finite(output: DenseOutput) -> list[str]:
    kinds = {
        "class logits": output.logits,
        "box predictions": output.box_params,
        "centerness": output.centerness or [],
        "features": output.features or [],
    }
    return [kind for kind, maps in kinds.items() if not all(x.isfinite().all() for x in maps)]
