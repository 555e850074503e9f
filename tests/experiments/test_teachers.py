"""Which training makes a config's teacher."""

from pathlib import Path

import pytest

from d2kd.config import config_path
from d2kd.experiments import plan_teacher
from d2kd.experiments.teachers import teacher_is_ready
from tests.experiments.small import STUDENT, experiment

CONFIGS = Path(config_path(STUDENT)).parents[1]
STUDENTS = sorted([*CONFIGS.glob("digits/*_crosskd.py"), *CONFIGS.glob("*/*_third_crosskd.py")])


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_finds_its_teacher(tmp_path, path):
    checkpoint, run = plan_teacher(experiment(tmp_path), str(path))
    assert run.load_config().train.output_dir == str(Path(checkpoint).parent) == str(run.folder)
    assert Path(run.config).stem.endswith("_teacher")
    assert Path(run.config).stem.startswith(path.stem.split("_")[0])


def test_the_teacher_of_another_checkpoint_is_trained_by_its_own_config(tmp_path):
    """That of the config without overrides would be passed off as the one that is named."""
    third = "output/cards/gfl_third_teacher/model_final.pth"
    elsewhere = experiment(tmp_path, overrides=(f"model.teacher.checkpoint={third}",))
    checkpoint, run = plan_teacher(elsewhere, "cards/gfl_third_crosskd.py")
    assert checkpoint == third and run.folder == Path(third).parent
    assert Path(run.config).name == "gfl_third_teacher.py"


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
