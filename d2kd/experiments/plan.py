"""Plans the runs of an experiment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from d2kd.config import ALONE, CONFIG, load_config
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
    "quoted",
    "stretched",
    "stretched_for",
    "stretched_length",
]

TEACHER = "teacher"
_STRETCHED = "alone_as_long_as_"


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
        ValueError: two configs of one name, or a method of a name that results have for other trainings.
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
        for method in self.methods:
            if method == TEACHER:
                raise ValueError(
                    f"Method {method!r} is what results call the teacher, which is evaluated without being named: name "
                    f"another; the losses of the config are the method {CONFIG!r}."
                )
            if source := stretched_for(method):
                raise ValueError(
                    f"Method {method!r} is what results call a training that --stretch adds: name {source!r} instead, "
                    "with --stretch."
                )

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
    iterations = stretched_length(*(read_json(run.result_file) for run in (alone, distilled)))
    return plan_run(experiment, alone.config, stretched(distilled.method), alone.seed, max_iter=iterations)


def stretched_length(alone: Mapping[str, Any], distilled: Mapping[str, Any]) -> int:
    """How many iterations of the student alone cost what the distilled run of its seed did, from their results."""
    return max(1, round(alone["max_iter"] * distilled["cost_seconds"] / alone["cost_seconds"]))
