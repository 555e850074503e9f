"""Plans the runs of an experiment."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from d2kd.config import ALONE, CONFIG, config_path, load_config
from d2kd.config.nodes import target_of
from d2kd.engine import resolve_device
from d2kd.experiments.files import read_json
from d2kd.experiments.jobs import JobError
from d2kd.modeling import DistilledDetector

__all__ = [
    "TEACHER",
    "Experiment",
    "Run",
    "Settings",
    "config_label",
    "method_label",
    "plan_run",
    "plan_runs",
    "plan_stretched",
    "plan_teacher",
    "quoted",
    "stretched",
    "stretched_for",
    "teacher_is_ready",
]

TEACHER = "teacher"
_STRETCHED = "alone_as_long_as_"
_CHECKPOINT = "model.teacher.checkpoint"


def stretched(method: str) -> str:
    """The name of "the student alone, trained for as long as ``method`` takes"."""
    return _STRETCHED + method


def stretched_for(method: str) -> str | None:
    """The method whose cost :func:`stretched` was given; None for any other method."""
    return method.removeprefix(_STRETCHED) if method.startswith(_STRETCHED) else None


def config_label(config: str) -> str:
    """What tables, figures and folders call a config: its file's name."""
    return Path(config).stem


def quoted(path: Path) -> str:
    """A path as the value of an override, whatever characters it has."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"


def _losses_of(method: str) -> str:
    if method == TEACHER:
        return CONFIG
    return ALONE if stretched_for(method) else method


def method_label(method: str) -> str:
    """What tables and figures call a method."""
    if source := stretched_for(method):
        return f"student alone, at the cost of {method_label(source)}"
    return {ALONE: "student alone", CONFIG: "the config's losses"}.get(method, method)


class Settings(NamedTuple):
    """What a plan needs of a config."""

    max_iter: int
    metric: str
    device: str
    has_losses: bool


@dataclasses.dataclass(frozen=True)
class Experiment:
    """
    Methods x seeds of a config, or of several.

    Args:
        configs: paths, or names of d2kd's own configs, of files with a distilled model. The names of the files, which
            must differ, name the runs.
        output: folder for the students' runs, ``{config}/{method}/seed{n}``.
        methods, seeds: all combinations; the method "alone" is the student without distillation, "config" what the
            config says, any other the preset of that name.
        overrides: for every student's training.
        max_iter: iterations of the students; None for what their configs say.
        stretch: add the student alone, trained for as long as each method takes.
        report: overrides for the evaluation that is reported on; none: the one of the training.
        teacher_config: what trains a teacher whose checkpoint does not exist; None: a ``*teacher.py`` beside the
            student's config, whose ``train.output_dir`` is the checkpoint's folder.
        teacher_overrides: for that training.

    Raises:
        ValueError: two configs of one name.
    """

    configs: tuple[str, ...]
    output: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    max_iter: int | None = None  # the configs' own
    stretch: bool = False
    report: tuple[str, ...] = ()
    teacher_config: str | None = None
    teacher_overrides: tuple[str, ...] = ()
    _settings: dict[tuple[str, str], Settings] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        names = [config_label(config) for config in self.configs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"Two configs are named {twice[0]}.py, as the folder of their runs would be: rename one.")

    @property
    def distilled(self) -> tuple[str, ...]:
        return tuple(method for method in self.methods if method != ALONE)

    @property
    def device(self) -> str:
        """
        "cpu" or "cuda": where the students train.

        Raises:
            ValueError: some train on the one, some on the other.
        """
        return self._one("train.device", "device")

    @property
    def metric(self) -> str:
        """
        ``train.best_metric`` of the configs.

        Raises:
            ValueError: the configs have several.
        """
        return self._one("train.best_metric", "metric")

    def _one(self, key: str, field: str) -> str:
        found = {config: getattr(self.settings(config, ALONE), field) for config in self.configs}
        if len(set(found.values())) > 1:
            each = ", ".join(f"{value} in {config}" for config, value in found.items())
            raise ValueError(f"{key} means {each}, which cannot be compared: add {key}=VALUE for all.")
        return next(iter(found.values()))

    def settings(self, config: str, losses: str) -> Settings:
        """
        What a config says, read once.

        Raises:
            ValueError: it has no distilled model, or ``losses`` are not known, or not for its detectors.
            FileNotFoundError: there is no such config.
        """
        if (config, losses) not in self._settings:
            cfg = load_config(config, self.overrides, method=losses)
            has_losses = target_of(cfg.model) is DistilledDetector and bool(cfg.model.get("losses"))
            device = resolve_device(cfg.train.device).type
            self._settings[config, losses] = Settings(cfg.train.max_iter, cfg.train.best_metric, device, has_losses)
        return self._settings[config, losses]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    config: str
    method: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    max_iter: int
    metric: str  # train.best_metric
    device: str  # "cpu" or "cuda": where it trains; of a teacher, where its students do

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def losses(self) -> str:
        """The method whose losses it trains with, as :func:`d2kd.config.with_method` takes it."""
        return _losses_of(self.method)

    def load_config(self, *overrides: str) -> DictConfig:
        """What the training command makes of its arguments, with further overrides."""
        return load_config(self.config, [*self.overrides, *overrides], method=self.losses)


# What to run


def plan_run(experiment: Experiment, config: str, method: str, seed: int, max_iter: int | None = None) -> Run:
    """
    One student's training; ``max_iter`` is that of a stretched one.

    Raises:
        ValueError: the config has no distilled model, or the method is not known, or not for its detectors.
        FileNotFoundError: there is no such config.
    """
    settings = experiment.settings(config, _losses_of(method))
    if method == CONFIG and not settings.has_losses:
        raise ValueError(f"{config} has no losses of its own, so it has no method {CONFIG!r}: use distill(...) in it.")
    max_iter = max_iter or experiment.max_iter or settings.max_iter
    every = math.ceil(max_iter / 8)  # so that the last quarter of the schedule begins with an evaluation
    overrides = [f"train.seed={seed}", f"train.max_iter={max_iter}", f"train.eval_period={every}"]
    overrides.append(f"train.checkpointer.period={every}")
    overrides.append(f"train.log_period={min(20, every)}")  # an evaluation is logged by the next log
    folder = experiment.output / config_label(config) / method / f"seed{seed}"
    name = f"{config_label(config)} {method} seed {seed}"
    overrides += experiment.overrides
    return Run(name, config, method, seed, folder, tuple(overrides), max_iter, settings.metric, settings.device)


def plan_runs(experiment: Experiment) -> list[Run]:
    """The students' trainings, stretched ones aside; a seed's runs stand together."""
    return [
        plan_run(experiment, config, method, seed)
        for seed in experiment.seeds
        for config in experiment.configs
        for method in experiment.methods
    ]


def plan_stretched(experiment: Experiment, alone: Run, distilled: Run) -> Run:
    """
    The student alone, with as many iterations as cost the seconds of the distilled run of this seed.

    Raises:
        JobError: one of the two runs that this follows from is not finished.
    """
    for run in (alone, distilled):
        if not run.result_file.is_file():
            raise JobError(f"{run.name} is not finished")
    costs = [read_json(run.result_file)["cost_seconds"] for run in (alone, distilled)]
    iterations = max(1, round(alone.max_iter * costs[1] / costs[0]))
    return plan_run(experiment, alone.config, stretched(distilled.method), alone.seed, max_iter=iterations)


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
    """The ``*teacher.py`` beside a config that writes to where this expects its teacher, overridden or not."""
    own = OmegaConf.select(load_config(config), _CHECKPOINT, default=None)
    folders = {os.path.abspath(Path(place).parent) for place in (checkpoint, own) if place}
    # Not by its name: several students may share a teacher.
    for path in map(str, sorted(Path(config_path(config)).parent.glob("*teacher.py"))):
        folder = OmegaConf.select(load_config(path), "train.output_dir", default=None)
        if folder and os.path.abspath(folder) in folders:
            return path
    return None


def teacher_is_ready(checkpoint: str) -> bool:
    """Whether the checkpoint is there, and not the unfinished file of a training that was killed."""
    if "://" in checkpoint:
        return True
    path = Path(checkpoint)
    last = path.parent / "last_checkpoint"  # names a file when that is complete
    if path.name != "model_final.pth" or not last.is_file():
        return path.is_file()
    return path.is_file() and last.read_text().strip() == path.name
