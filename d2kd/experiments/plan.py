"""Plans the runs of an experiment, and checks what exists of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from d2kd.data.digits import DATASET_VERSION
from d2kd.experiments.files import read_json
from d2kd.experiments.jobs import JobError

__all__ = [
    "ALONE",
    "TEACHER",
    "Experiment",
    "Run",
    "check_request",
    "method_label",
    "plan_run",
    "plan_runs",
    "plan_stretched",
    "plan_teacher",
    "request",
    "sha256",
    "stretched",
    "stretched_for",
    "teacher_is_ready",
]

ALONE = "alone"  # the method of the undistilled student
TEACHER = "teacher"
_STRETCHED = "alone_as_long_as_"


def stretched(method: str) -> str:
    """The name of "the student alone, trained for as long as ``method`` takes"."""
    return _STRETCHED + method


def stretched_for(method: str) -> str | None:
    """The method whose cost :func:`stretched` was given; None for any other method."""
    return method.removeprefix(_STRETCHED) if method.startswith(_STRETCHED) else None


def method_label(method: str) -> str:
    """What tables and figures call a method."""
    if source := stretched_for(method):
        return f"student alone, at {source}'s cost"
    return "student alone" if method == ALONE else method


@dataclasses.dataclass(frozen=True)
class Experiment:
    """
    Methods x seeds of a detector's config, for one detector or several.

    Args:
        configs: folder with ``{detector}_{baseline,METHOD}.py`` and ``*_teacher.py``.
        output: folder for the students' runs, ``{detector}/{method}/seed{n}``.
        detectors, methods, seeds: all combinations; the method "alone" is the student without distillation.
        overrides: for every student's training.
        max_iter: iterations of the students; None for what their configs say.
        stretch: add the student alone, trained for as long as each method takes.
        split: the split that is reported on.
    """

    configs: Path
    output: Path
    detectors: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    max_iter: int | None = None  # the configs' own
    stretch: bool = False
    split: str = "val"

    @property
    def distilled(self) -> tuple[str, ...]:
        return tuple(method for method in self.methods if method != ALONE)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    detector: str
    method: str
    seed: int
    config: Path
    folder: Path
    overrides: tuple[str, ...]
    max_iter: int

    @property
    def name(self) -> str:
        if self.method == TEACHER:
            return self.config.stem.replace("_", " ")
        return f"{self.detector} {self.method} seed {self.seed}"

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    def load_config(self) -> DictConfig:
        return LazyConfig.apply_overrides(LazyConfig.load(str(self.config)), list(self.overrides))


# What to run


def config_file(experiment: Experiment, detector: str, method: str) -> Path:
    """
    Raises:
        ValueError: there is no such config.
    """
    alone = method == ALONE or stretched_for(method)
    path = experiment.configs / f"{detector}_{'baseline' if alone else method}.py"
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in experiment.configs.glob("*_*.py")))
        raise ValueError(f"{detector} {method} needs {path.name} in {experiment.configs}; there are: {found}.")
    return path


def plan_run(experiment: Experiment, detector: str, method: str, seed: int, max_iter: int | None = None) -> Run:
    """One student's training; ``max_iter`` is that of a stretched one."""
    config = config_file(experiment, detector, method)
    max_iter = max_iter or experiment.max_iter or LazyConfig.load(str(config)).train.max_iter
    every = math.ceil(max_iter / 8)  # so that the last quarter of the schedule begins with an evaluation
    overrides = [f"train.seed={seed}", f"train.max_iter={max_iter}", f"train.eval_period={every}"]
    overrides.append(f"train.checkpointer.period={every}")
    overrides.append(f"train.log_period={min(20, every)}")  # an evaluation is logged by the next log
    folder = experiment.output / detector / method / f"seed{seed}"
    return Run(detector, method, seed, config, folder, (*overrides, *experiment.overrides), max_iter)


def plan_runs(experiment: Experiment) -> list[Run]:
    """The students' trainings, stretched ones aside; a seed's runs stand together."""
    return [
        plan_run(experiment, detector, method, seed)
        for seed in experiment.seeds
        for detector in experiment.detectors
        for method in experiment.methods
    ]


def plan_stretched(experiment: Experiment, detector: str, method: str, seed: int) -> Run:
    """
    The student alone, with as many iterations as cost the CPU seconds of the distilled run of this seed.

    Raises:
        JobError: one of the two runs that this follows from is not finished.
    """
    pair = [plan_run(experiment, detector, m, seed) for m in (ALONE, method)]
    for run in pair:
        if not run.result_file.is_file():
            raise JobError(f"{run.name} is not finished")
    alone, distilled = (read_json(run.result_file)["cpu_seconds"] for run in pair)
    iterations = max(1, round(pair[0].max_iter * distilled / alone))
    return plan_run(experiment, detector, stretched(method), seed, max_iter=iterations)


def plan_teacher(experiment: Experiment, detector: str) -> tuple[Run, str]:
    """
    The training of the students' teacher, and the path or URL where it is expected.

    Raises:
        ValueError: no ``*_teacher.py`` writes to where the student's config expects its teacher.
    """
    config = config_file(experiment, detector, experiment.distilled[0])
    folder = Path(LazyConfig.load(str(config)).model.teacher.checkpoint).parent
    # Two detectors may share a teacher, so it is found by its folder, not by its name.
    for path in sorted(experiment.configs.glob("*_teacher.py")):
        train = LazyConfig.load(str(path)).train
        if Path(train.output_dir) == folder:
            break
    else:
        raise ValueError(f"{config.name} expects a teacher in {folder}, but no *_teacher.py writes to that folder.")
    checkpoint = plan_run(experiment, detector, experiment.distilled[0], 0).load_config().model.teacher.checkpoint
    return Run(detector, TEACHER, train.seed, path, Path(checkpoint).parent, (), train.max_iter), checkpoint


def teacher_is_ready(checkpoint: str) -> bool:
    """Whether the checkpoint is there, and not the unfinished file of a training that was killed."""
    if "://" in checkpoint:
        return True
    path = Path(checkpoint)
    last = path.parent / "last_checkpoint"  # names a file when that is complete
    if path.name != "model_final.pth" or not last.is_file():
        return path.is_file()
    return path.is_file() and last.read_text().strip() == path.name


# What was asked for, against what is there


@cache
def _file_sha256(path: Path, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256(checkpoint: str) -> str | None:
    """Digest of a checkpoint; None if there is no such file, or it is a URL."""
    path = Path(checkpoint)
    return _file_sha256(path, path.stat().st_mtime_ns) if path.is_file() else None


def _name_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def request(run: Run) -> dict[str, Any]:
    """What decides a run's outcome: its data, its overrides, its config (resolved), its teacher's weights."""
    cfg = run.load_config()
    distils = OmegaConf.select(cfg, "model.losses", default=None)
    content = json.dumps(OmegaConf.to_container(cfg, resolve=True), sort_keys=True, default=_name_of)
    return {
        "config": f"{run.config.parent.name}/{run.config.name}",
        "digits_version": DATASET_VERSION,
        "overrides": list(run.overrides),
        "config_sha256": hashlib.sha256(content.encode()).hexdigest(),
        "teacher_sha256": sha256(cfg.model.teacher.checkpoint) if distils else None,
    }


def check_request(run: Run) -> dict[str, Any]:
    """
    The run's request.

    Raises:
        JobError: its folder holds a run, finished or not, of another request.
    """
    new, file = request(run), run.folder / "request.json"
    if not file.is_file():
        return new
    old = read_json(file)
    if new["teacher_sha256"] is None:  # not there (yet)
        old["teacher_sha256"] = None
    if old == new:
        return new
    if old["digits_version"] != new["digits_version"]:
        why = f"it was trained on version {old['digits_version']} of the digits, now there is {new['digits_version']}"
    elif old["overrides"] != new["overrides"]:
        why = f"its overrides were {' '.join(old['overrides'])}, now {' '.join(new['overrides'])}"
    elif old["config_sha256"] != new["config_sha256"]:
        why = f"what {new['config']} says has changed since"
    else:
        why = "its teacher has other weights since"
    other = "" if run.method == TEACHER else ", or choose another --output"
    raise JobError(f"{run.folder} holds another run: {why}. Delete it{other}")
