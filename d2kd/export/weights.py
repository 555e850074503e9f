"""The student's weights alone, from any checkpoint of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from omegaconf import DictConfig

from d2kd.checkpoint import DamagedError, LayoutError, Misfit, MisfitError, load_strictly, save_whole
from d2kd.config.nodes import made
from d2kd.config.teacher_file import build_teacher
from d2kd.modeling.adapters import input_format_of
from d2kd.modeling.distillation import student

__all__ = ["ExportError", "LoadedStudent", "load_student", "load_yacs_student", "write_weights"]


class ExportError(ValueError):
    """A student that cannot be exported; the message says why and needs no traceback."""


@dataclass
class LoadedStudent:
    """
    A run's student and what its checkpoint has beside it.

    Attributes:
        detector: the plain detector with its weights, on the CPU, in eval mode.
        input_format: channel order of its images.
        distillation: the keys of the checkpoint's model that belong to distillation.
        entries: the checkpoint's entries beside the model, such as the optimizer.
        misfit: what did not fit; empty unless that was allowed.
    """

    detector: DenseDetector
    input_format: str
    distillation: list[str]
    entries: list[str]
    misfit: Misfit


def load_student(cfg: DictConfig, checkpoint: str, *, allow_partial: bool = False) -> LoadedStudent:
    """
    Load the student of a run. Neither its teacher nor its data is read.

    Args:
        cfg: the run's config; only ``model`` is read.
        checkpoint: any checkpoint of the run, a path or URL that Detectron2 can read.
        allow_partial: also one that does not fit; what it lacks is random.

    Raises:
        ExportError: ``cfg.model`` is missing or no dense detector, or the checkpoint cannot be read, lacks keys of the
            student, or has other ones (except ``distillation.*``) or some of another shape; the message lists them.
        FileNotFoundError: there is no such checkpoint.
    """
    if "model" not in cfg:
        raise ExportError(f"The config has no 'model'; it has {', '.join(map(str, cfg)) or 'nothing'}.")
    model = made(cfg.model, "model")
    try:
        detector = student(model)
    except TypeError as error:
        raise ExportError(f"The config's model cannot be exported. {error}") from error
    own_format = getattr(model, "input_format", None)  # FCOS has none, a DistilledDetector of FCOS has
    return _load(detector, checkpoint, own_format, allow_partial)


def load_yacs_student(config: str, checkpoint: str, *, allow_partial: bool = False) -> LoadedStudent:
    """
    Load the student, or the plain detector, of a yacs config.

    Args:
        config: path of the ``config.yaml`` that Detectron2 wrote beside the checkpoint; read without running code of
            it.
        checkpoint, allow_partial: see :func:`load_student`.

    Raises:
        ExportError: see :func:`load_student`.
        FileNotFoundError: there is no such config or checkpoint.
        ValueError, TypeError: the config's model cannot be built, or is none that d2kd reads.
    """
    detector = build_teacher(config, key="CONFIG")
    return _load(detector, checkpoint, getattr(detector, "input_format", None), allow_partial)


def _load(detector: DenseDetector, checkpoint: str, input_format: str | None, allow_partial: bool) -> LoadedStudent:
    try:
        loaded = load_strictly(
            detector,
            checkpoint,
            refusal=f"{checkpoint} is no checkpoint of this config's student ({type(detector).__name__})",
            way_out="--allow-partial exports it with random values for what it lacks",
            absent=f"The checkpoint is {checkpoint!r}, but there is no such file.",
            harmless=re.compile(r"^distillation\."),
            allow_partial=allow_partial,
        )
    except (DamagedError, LayoutError, MisfitError) as error:
        raise ExportError(str(error)) from error
    except OSError:
        raise
    except Exception as error:  # a file that is no checkpoint can raise anything
        raise ExportError(f"{checkpoint} cannot be loaded: {type(error).__name__}: {error}") from error
    return LoadedStudent(
        detector=detector.cpu().eval(),
        input_format=input_format or input_format_of(detector, None, "model.input_format"),
        distillation=list(loaded.ignored),
        entries=sorted(map(str, loaded.rest)),
        misfit=loaded.misfit,
    )


def write_weights(detector: DenseDetector, path: str | Path) -> None:
    """
    Write ``{"model": state_dict}``, which ``DetectionCheckpointer`` loads into the plain detector by exact names.

    Args:
        path: replaced if it exists, whole or not at all; its name must end in .pth.
    """
    save_whole({"model": detector.state_dict()}, path)
