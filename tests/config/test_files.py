"""Config files: paths, packaged ones, overrides."""

import builtins

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
    name = "common/models/fcos.py"
    assert load_config(name) == get_config(name)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("model = {'answer': 42}")
    assert config_path(name) == name
    assert load_config(name) == {"model": {"answer": 42}}


def test_a_train_made_for_detectron2_is_enough(tmp_path):
    (tmp_path / "mine.py").write_text("model = {}\ntrain = dict(max_iter=7, amp=dict(enabled=True), seed=3)")
    train, defaults = load_config(str(tmp_path / "mine.py")).train, get_config("common/train.py").train
    assert train == {
        **{"max_iter": 7, "seed": 3, "clip_grad": defaults.clip_grad, "best_metric": defaults.best_metric},
        **{"amp": {"enabled": True, "dtype": defaults.amp.dtype}, "accumulate": 1, "trainer": defaults.trainer},
        **{"ema": None, "writers": []},
    }
    assert load_config(str(tmp_path / "mine.py"), ["train.best_metric=found/share"]).train.best_metric == "found/share"


def test_keys_of_ones_own_stay_where_they_cannot_be_meant_for_others(tmp_path):
    own = "seeds=[0, 1], checkpoint='x', wandb=dict(project='p'), model_ema=True"
    (tmp_path / "mine.py").write_text(f"model = {{}}\ntrain = dict({own})")
    assert load_config(str(tmp_path / "mine.py")).train.seeds == [0, 1]
    for misspelt in ("seeds=1", "checkpointr=dict()", "max_iters=7", "amp=dict(enable=True)"):
        (tmp_path / "other.py").write_text(f"model = {{}}\ntrain = dict({misspelt})")
        with pytest.raises(ValueError, match="is in the config, but nothing reads it: did you mean train"):
            load_config(str(tmp_path / "other.py"))


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        (
            "x.py",
            "import nothere",
            r"x\.py cannot be read: \S*x\.py, line 1: ModuleNotFoundError: No module named",
        ),
        ("x.py", "a = 1\nmodel = {}['b']", r"x\.py cannot be read: \S*x\.py, line 2: KeyError: 'b'$"),
        ("x.py", "from .other import model", r"x\.py cannot be read: \S*other\.py, line 2: ZeroDivisionError: "),
        ("x.py", "a = 1\ndef (", r"x\.py cannot be read: .* \(line 2: invalid syntax\)$"),
        ("x.yaml", "a: [1", r"x\.yaml is no YAML without code: .*"),
        ("x.txt", "hello", r"x\.txt is no config, expected a LazyConfig"),
        ("x.py", "a = {}", r"x\.py has no model, expected a LazyConfig with a model node, L\(CLASS\)\(\.\.\.\)\.$"),
        ("x.yaml", "MODEL: {}", r"x\.yaml has no model, .*; a yacs config is distilled by the train_net\.py that .*$"),
        ("x.py", "import d2kd\nmodel = d2kd.distill({}, teacher='x')", r"^distill\(\) got method=None"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path, name, text, sentence):
    (tmp_path / "other.py").write_text("\n1 / 0")
    (tmp_path / name).write_text(text)
    imports = builtins.__import__
    with pytest.raises((ValueError, TypeError), match=sentence) as error:
        load_config(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert builtins.__import__ is imports  # Detectron2 replaces it while a file is read


def test_a_config_that_is_nowhere():
    with pytest.raises(FileNotFoundError, match="no file 'digits/fcos_croskd.py'.*did you mean digits/fcos_crosskd.py"):
        config_path("digits/fcos_croskd.py")
    with pytest.raises(FileNotFoundError, match="no file 'zzz', and d2kd has no config of that name.$"):
        config_path("zzz")


def test_a_config_beside_the_missing_one_is_suggested(tmp_path):
    (tmp_path / "distilled.py").touch()
    with pytest.raises(FileNotFoundError, match=f"; did you mean {tmp_path}/distilled.py"):
        config_path(f"{tmp_path}/distiled.py")


def test_overrides_come_after_the_method():
    cfg = load_config("digits/fcos_crosskd.py", ["model.losses.bckd_cls.weight=7", "train.seed=3"], method="bckd")
    assert list(cfg.model.losses) == ["bckd_cls", "bckd_loc"]
    assert (cfg.model.losses.bckd_cls.weight, cfg.train.seed) == (7, 3)


@pytest.mark.parametrize(
    "override, found",
    [
        ("model={", "cannot be read, expected KEY=VALUE"),
        ("train.seed.x=1", "sets train.seed.x, but train.seed is 3, which has no keys"),
        ("model=fcos", "makes model 'fcos', expected a node"),
        ("~train.nothing", "cannot be applied: "),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(override, found):
    with pytest.raises(ValueError, match=f"The override '{override}' {found}") as error:
        load_config("digits/fcos_crosskd.py", ["train.seed=3", override])
    assert "\n" not in str(error.value)
