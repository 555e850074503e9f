"""Which runs an experiment is made of."""

import shutil
from pathlib import Path

import pytest

from d2kd.config import ALONE, CONFIG, config_path, load_config
from d2kd.experiments import plan_run, plan_teacher
from d2kd.experiments.plan import plan_runs, teacher_is_ready
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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_crosskd.py")), ids=lambda path: path.stem)
def test_every_config_finds_its_teacher(tmp_path, path):
    checkpoint, run = plan_teacher(experiment(tmp_path), str(path))
    assert run.load_config().train.output_dir == str(Path(checkpoint).parent) == str(run.folder)
    assert Path(run.config).stem.endswith("_teacher")
    assert Path(run.config).stem.startswith(path.stem.split("_")[0])


def test_a_teacher_may_be_trained_by_any_config_or_be_there(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from d2kd import get_config\ncfg = get_config('digits/fcos_crosskd.py')\nmodel, train = cfg.model, cfg.train\n"
        f"model.teacher.checkpoint = '{tmp_path}/big/model_final.pth'\n"
    )
    with pytest.raises(ValueError, match="no \\*teacher.py beside that config writes to its folder.*--teacher-config"):
        plan_teacher(experiment(tmp_path), str(mine))
    checkpoint, run = plan_teacher(experiment(tmp_path, teacher_config="digits/fcos_teacher.py"), str(mine))
    assert (run.config, run.folder, run.max_iter) == ("digits/fcos_teacher.py", tmp_path / "big", 5000)
    with pytest.raises(ValueError, match="expected a model_final.pth"):
        elsewhere = (f"model.teacher.checkpoint={tmp_path}/weights.pkl",)
        plan_teacher(experiment(tmp_path, teacher_config="digits/fcos_teacher.py", overrides=elsewhere), str(mine))
    Path(checkpoint).parent.mkdir()
    Path(checkpoint).touch()
    assert plan_teacher(experiment(tmp_path), str(mine)) == (checkpoint, None)


def test_teacher_is_ready_only_when_its_checkpoint_is_whole(tmp_path):
    final, last = tmp_path / "model_final.pth", tmp_path / "last_checkpoint"
    assert not teacher_is_ready(str(final))
    final.write_bytes(b"half")
    last.write_text("model_0000499.pth")
    assert not teacher_is_ready(str(final))
    last.write_text("model_final.pth")
    assert teacher_is_ready(str(final))
    last.unlink()  # copied here by a person
    assert teacher_is_ready(str(final))
    assert teacher_is_ready("https://somewhere/model_final.pth")
