"""The weights of a teacher: loaded completely or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from d2kd.checkpoint import load_strictly, other_weights
from d2kd.modeling.detectors.interface import pixel_statistics

__all__ = ["count_initial_norms", "load_weights"]

# Below Detectron2's logger: whichever trainer runs has set that one up.
logger = logging.getLogger(f"detectron2.{__name__}")


def load_weights(detector: DenseDetector, checkpoint: str, entry: str) -> None:
    """
    Args:
        detector: the weights go there.
        checkpoint: path or URL that Detectron2 can read.
        entry: which of the file's entries they are; if it has averages beside them, this is logged.

    Raises:
        ValueError: missing, unexpected or mismatched keys, or values that are not finite, all listed; other pixel
            statistics than the detector's; no such entry.
        FileNotFoundError: no checkpoint there.
    """
    loaded = load_strictly(
        detector,
        checkpoint,
        refusal="The teacher's checkpoint does not fit the teacher's model; check that model.teacher.checkpoint was "
        "trained with model.teacher.model (in a yacs config: TEACHER_WEIGHTS with TEACHER_CONFIG of "
        "MODEL.DISTILLATION)",
        absent=f"model.teacher.checkpoint is {checkpoint!r}, but there is no such file: train the teacher first or "
        "correct the path (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS).",
        entry=entry,
        key="model.teacher.checkpoint (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS)",
    )
    _check_pixels(detector, loaded.ignored, checkpoint)
    if averages := [name for name in other_weights(loaded.rest) if name != entry]:
        logger.warning(
            "%s also has averaged weights (%s); the teacher has those of %r: model.teacher.weights=%s takes the "
            "averages (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS_ENTRY).",
            checkpoint,
            ", ".join(averages),
            entry,
            averages[0],
        )


def count_initial_norms(detector: nn.Module) -> int:
    """How many batch norms still have a mean of 0 and a variance of 1 everywhere, as before any training."""
    norms = [x for x in detector.modules() if isinstance(x, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    return sum(
        1
        for x in norms
        if x.running_mean is not None
        and x.running_var is not None
        and not x.running_mean.any()
        and bool((x.running_var == 1).all())
    )


def _check_pixels(detector: DenseDetector, left_over: Mapping[str, object], checkpoint: str) -> None:
    """Compare the pixel statistics of a checkpoint, which Detectron2 takes from the config, with the detector's."""
    for name, ours in zip(("pixel_mean", "pixel_std"), pixel_statistics(detector)):
        theirs = next((x for key, x in left_over.items() if key.rpartition(".")[2] == name), None)
        if theirs is None:
            continue
        a, b = ([round(x, 3) for x in torch.as_tensor(values).flatten().tolist()] for values in (theirs, ours))
        if a != b:
            raise ValueError(
                f"{checkpoint} was trained with {name} {a}, but model.teacher.model.{name} is {b}: take the former "
                "(in a yacs config: MODEL.PIXEL_MEAN and MODEL.PIXEL_STD of the teacher's own file)."
            )
