"""Which runs an experiment is made of."""

import shutil
from pathlib import Path

import pytest

from d2kd.config import ALONE, CONFIG, config_path, load_config
from d2kd.experiments import TEACHER, plan_run, stretched
from d2kd.experiments.plan import plan_runs
from tests.experiments.small import STUDENT, experiment

CONFIGS = Path(config_path(STUDENT)).parent


def test_plan_pairs_seeds_and_evaluates_at_three_quarters(tmp_path):
    two = dict(configs=(STUDENT, "digits/gfl_ld.py"), seeds=(0, 1))
    runs = plan_runs(experiment(tmp_path, **two, max_iter=800, overrides=("optimizer.lr=1",)))
    assert [run.name for run in runs[:5]] == [
        "fcos_crosskd alone seed 0",
        "fcos_crosskd config seed 0",
        "gfl_ld alone seed 0",
        "gfl_ld config seed 0",
        "fcos_crosskd alone seed 1",
    ]
    assert len(runs) == 8 and len({run.folder for run in runs}) == 8
    for run in runs:
        assert run.overrides[:3] == (f"train.seed={run.seed}", "train.max_iter=800", "train.eval_period=100")
        folder = tmp_path / Path(run.config).stem / run.method / f"seed{run.seed}"
        assert run.overrides[-1] == "optimizer.lr=1" and run.folder == folder


def test_a_config_is_read_once_a_method_whatever_the_number_of_seeds(tmp_path, monkeypatch):
    read: list[str] = []

    def counted(file, overrides, *, method):
        read.append(method)
        return load_config(file, overrides, method=method)

    monkeypatch.setattr("d2kd.experiments.plan.load_config", counted)
    experiment_of_five = experiment(tmp_path, seeds=(0, 1, 2, 3, 4))
    assert len(plan_runs(experiment_of_five)) == 10 and experiment_of_five.device == "cpu"
    assert read == [ALONE, CONFIG]


def test_plan_takes_the_configs_schedule(tmp_path):
    run = plan_run(experiment(tmp_path), STUDENT, CONFIG, 0)
    assert run.max_iter == run.load_config().train.max_iter > 0


def test_methods_change_the_losses_alone(tmp_path):
    configs = {m: plan_run(experiment(tmp_path), STUDENT, m, 0).load_config() for m in (ALONE, CONFIG, "bckd")}
    losses = {method: cfg.model.pop("losses") for method, cfg in configs.items()}
    assert configs[ALONE] == configs[CONFIG] == configs["bckd"]
    assert losses[ALONE] is None and list(losses["bckd"]) == ["bckd_cls", "bckd_loc"]
    assert losses[CONFIG].crosskd_cls.tail == 1  # as in the file


def test_configs_must_differ_in_name_and_agree_in_what_is_compared(tmp_path):
    shutil.copy(CONFIGS / "fcos_baseline.py", tmp_path / "fcos_crosskd.py")
    with pytest.raises(ValueError, match="named fcos_crosskd.py"):
        experiment(tmp_path, configs=(STUDENT, str(tmp_path / "fcos_crosskd.py")))
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from d2kd import get_config\ncfg = get_config('digits/fcos_crosskd.py')\n"
        "model, train = cfg.model, cfg.train\ntrain.best_metric = 'bbox/AP50'\n"
    )
    two = experiment(tmp_path, configs=(STUDENT, str(mine)))
    with pytest.raises(ValueError, match="train.best_metric means bbox/AP in digits/fcos_crosskd.py, bbox/AP50 in"):
        _ = two.metric
    one = experiment(tmp_path, configs=(STUDENT, str(mine)), overrides=("train.best_metric=speed",))
    assert one.metric == "speed"


@pytest.mark.parametrize(
    "method, message",
    [
        (TEACHER, "Method 'teacher' is what results call the teacher.*'config'"),
        (stretched("crosskd"), "Method 'alone_as_long_as_crosskd' is what .*name 'crosskd' instead, with --stretch"),
    ],
)
def test_a_method_is_not_named_as_another_training(tmp_path, method, message):
    """Its runs would be in that training's rows."""
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, methods=(ALONE, method))
