"""Plans the trainings of teachers."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import OmegaConf

from d2kd.config import config_path, load_config
from d2kd.engine import resolve_device
from d2kd.experiments.plan import TEACHER, Experiment, Run, config_label

__all__ = ["plan_teacher", "teacher_is_ready"]

_CHECKPOINT = "model.teacher.checkpoint"


def plan_teacher(experiment: Experiment, config: str) -> tuple[str, Run | None]:
    """
    Where a config expects its teacher, a path or URL, and the training that puts it there (None: no config is known
    for it).

    Raises:
        ValueError: the config names no checkpoint, or one that does not exist and that no config trains.
    """
    cfg = load_config(config, experiment.overrides)
    checkpoint, device = OmegaConf.select(cfg, _CHECKPOINT, default=None), resolve_device(cfg.train.device).type
    if not checkpoint:
        raise ValueError(f"{_CHECKPOINT} of {config} is {checkpoint!r}, expected a path or URL.")
    path = experiment.teacher_config or _teacher_config(config, checkpoint)
    ready = teacher_is_ready(checkpoint)
    if path is None:
        if ready:
            return checkpoint, None
        raise ValueError(
            f"{_CHECKPOINT} of {config} is {checkpoint}, which does not exist, and no *teacher.py "
            "beside that config writes to its folder: correct it, or add --teacher-config FILE to train the teacher."
        )
    if not ready and Path(checkpoint).name != "model_final.pth":
        raise ValueError(
            f"{_CHECKPOINT} of {config} is {checkpoint}, which does not exist, expected a "
            "model_final.pth if the teacher is to be trained."
        )
    name, folder, overrides = (
        f"teacher of {config_label(config)}",
        Path(checkpoint).parent,
        experiment.teacher_overrides,
    )
    train = load_config(path, overrides).train
    run = Run(name, path, TEACHER, train.seed, folder, overrides, train.max_iter, train.best_metric, device)
    return checkpoint, run


def _teacher_config(config: str, checkpoint: str) -> str | None:
    """
    The ``*teacher.py`` beside a config that writes to where this expects its teacher; if none does, the one that writes
    to where it does without overrides.
    """
    wanted = os.path.abspath(Path(checkpoint).parent)
    folders: dict[str, str] = {}  # folder -> the first config that writes to it
    # Not by its name: several students may share a teacher.
    for path in map(str, sorted(Path(config_path(config)).parent.glob("*teacher.py"))):
        if folder := OmegaConf.select(load_config(path), "train.output_dir", default=None):
            folders.setdefault(os.path.abspath(folder), path)
        if wanted in folders:
            return path
    own = OmegaConf.select(load_config(config), _CHECKPOINT, default=None)
    return folders.get(os.path.abspath(Path(own).parent)) if own else None


def teacher_is_ready(checkpoint: str) -> bool:
    """Whether the checkpoint is there, and not the unfinished file of a training that was killed."""
    if "://" in checkpoint:
        return True
    path = Path(checkpoint)
    last = path.parent / "last_checkpoint"  # names a file when that is complete
    if path.name != "model_final.pth" or not last.is_file():
        return path.is_file()
    return path.is_file() and last.read_text().strip() == path.name
