"""Config files: paths, packaged ones, overrides."""

import pytest

import d2kd
from d2kd.config import config_path, get_config, get_detectron2_config, load_config


def test_packaged_configs_are_found_by_name():
    assert get_config("common/train.py").train.max_iter > 0
    assert d2kd.get_config is get_config
    assert get_detectron2_config("common/models/retinanet.py").model.num_classes == 80


@pytest.mark.parametrize("get, package", [(get_config, "d2kd"), (get_detectron2_config, "detectron2")])
def test_an_unknown_packaged_config_lists_those_that_are(get, package):
    with pytest.raises(FileNotFoundError, match=f"{package} has no config 'common/trian.py'; it has .*common/train.py"):
        get("common/trian.py")


def test_a_file_that_exists_comes_before_a_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("common/train.py") == get_config("common/train.py")
    (tmp_path / "common").mkdir()
    (tmp_path / "common/train.py").write_text("mine = {'answer': 42}")
    assert config_path("common/train.py") == "common/train.py"
    assert load_config("common/train.py") == {"mine": {"answer": 42}}


def test_a_config_that_is_nowhere():
    with pytest.raises(FileNotFoundError, match="no file 'digits/fcos_croskd.py'.*did you mean digits/fcos_crosskd.py"):
        config_path("digits/fcos_croskd.py")
    with pytest.raises(FileNotFoundError, match="no file 'zzz', and d2kd has no config of that name.$"):
        config_path("zzz")


def test_overrides_come_after_the_method():
    cfg = load_config("digits/fcos_crosskd.py", ["model.losses.bckd_cls.weight=7", "train.seed=3"], method="bckd")
    assert list(cfg.model.losses) == ["bckd_cls", "bckd_loc"]
    assert (cfg.model.losses.bckd_cls.weight, cfg.train.seed) == (7, 3)


@pytest.mark.parametrize("override", ["model={", "train.seed.x=1"])
def test_an_override_that_cannot_be_applied_is_named(override):
    with pytest.raises(ValueError, match=f"The override '{override}' cannot be applied: \\S") as error:
        load_config("digits/fcos_crosskd.py", ["train.seed=3", override])
    assert "\n" not in str(error.value)
