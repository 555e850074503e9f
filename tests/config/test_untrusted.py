"""A teacher's config from elsewhere runs no code."""

import functools
from functools import partial

import pytest
import yaml
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from omegaconf import OmegaConf
from torch import nn

from d2kd.config import get_config, load_config
from d2kd.config.teacher_file import build_teacher
from d2kd.config.untrusted import check_run, check_targets, read_yaml
from tests.nodes import fcos

YAML = {
    "a call": "model: !!python/object/apply:os.mkdir [MADE]",
    "a call deep inside": "model: {_target_: detectron2.modeling.meta_arch.fcos.FCOS, "
    "backbone: [!!python/object/apply:os.mkdir [MADE]]}",
    "a call in a yacs config": "MODEL: {META_ARCHITECTURE: RetinaNet, WEIGHTS: !!python/object/apply:os.mkdir [MADE]}",
    "a new object": "model: !!python/object/new:os.mkdir [MADE]",
    "an object with a state": "model: !!python/object/apply:functools.partial {args: [!!python/name:os.mkdir ''], "
    "state: [!!python/name:os.mkdir '', ['MADE'], {}, {}]}",
    "an evaluated call": """model: !!python/object/apply:eval ["__import__('os').mkdir('MADE')"]""",
    "an evaluated attribute": """MODEL: !!python/object/apply:eval ["().__class__"]""",
    "a module": "model: !!python/module:evil",
    "a name": "model: {_target_: !!python/name:evil.run '', path: 'MADE'}",
}
TARGETS = {
    "a function": ("os.mkdir", "path"),
    "through a package's own import": ("torch.os.mkdir", "path"),
    "a module that lies here": ("evil.run", "path"),
    "torch's reader of pickles": ("torch.load", "f"),
    "a hub": ("torch.hub.load", "repo_or_dir"),
    "another config": ("d2kd.config.teacher_file.build_teacher", "config"),
    "a LazyConfig": ("detectron2.config.LazyConfig.load", "filename"),
    "a builtin": ("builtins.exec", "source"),
    "timm's reader of checkpoints": ("timm.models.load_checkpoint", "checkpoint_path"),
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder that is there if code was run."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'made')!r})\nrun = os.mkdir\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "made"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_that_would_run_code_is_refused(made, tmp_path, text):
    path = tmp_path / "teacher.yaml"
    path.write_text(text.replace("MADE", str(made)))
    with pytest.raises(ValueError, match=r"^model.teacher.model.config \(.*\) is .*teacher.yaml") as error:
        build_teacher(str(path))
    assert "\n" not in str(error.value)


def test_yaml_that_a_yacs_config_is_based_on(made, tmp_path):
    (tmp_path / "base.yaml").write_text(YAML["a call in a yacs config"].replace("MADE", str(made)))
    (tmp_path / "teacher.yaml").write_text("_BASE_: base.yaml\nMODEL: {META_ARCHITECTURE: RetinaNet}")
    with pytest.raises(
        ValueError,
        match=r"^model.teacher.model.config .*base.yaml: it has !!python/object/apply:os",
    ):
        build_teacher(str(tmp_path / "teacher.yaml"))


@pytest.mark.parametrize("place", ["model", "inside", "interpolated", "of a run"])
@pytest.mark.parametrize("target, argument", TARGETS.values(), ids=TARGETS)
def test_targets_that_are_no_network_are_refused(made, tmp_path, target, argument, place):
    node = {"_target_": target, argument: str(made)}
    network = {"_target_": "detectron2.modeling.meta_arch.fcos.FCOS", "backbone": node}
    content = {
        "model": {"model": node},
        "inside": {"model": network},
        "interpolated": {"model": network | {"backbone": "${elsewhere}"}, "elsewhere": node},
        "of a run": {"model": {"_target_": "d2kd.modeling.DistilledDetector", "student": network}},
    }[place]
    path = tmp_path / "teacher.yaml"
    path.write_text(yaml.safe_dump(content))
    root = target.partition(".")[0]
    allowed = rf"set model.teacher.model.trust=\[{root}\] \(in a yacs config: MODEL.DISTILLATION.TEACHER_TRUST\)"
    with pytest.raises(ValueError, match=rf"teacher.yaml.*it names {target}, expected networks .* {allowed}"):
        build_teacher(str(path))


def test_a_project_that_is_trusted(tmp_path):
    LazyConfig.save(OmegaConf.create({"model": fcos()}, flags={"allow_objects": True}), str(tmp_path / "teacher.yaml"))
    with pytest.raises(ValueError, match=r"it names tests.helpers.build_backbone.* set model.teacher.model.trust=\[te"):
        build_teacher(str(tmp_path / "teacher.yaml"))
    build_teacher(str(tmp_path / "teacher.yaml"), trust=["tests"])


@pytest.mark.parametrize("name", ["gfl", "atss", "retinanet_openmmlab", "fcos_openmmlab", "fcos", "retinanet"])
def test_dumped_models_need_no_trust(tmp_path, name):
    cfg = get_config(f"common/models/{name}.py")
    LazyConfig.save(cfg, str(tmp_path / "teacher.yaml"))
    content = read_yaml(str(tmp_path / "teacher.yaml"))
    check_targets(OmegaConf.to_container(OmegaConf.create(content, flags={"allow_objects": True}).model, resolve=True))


@pytest.mark.parametrize("name", ["coco/gfl_r50_ld", "coco/retinanet_r50_crosskd", "digits/fcos_crosskd"])
def test_dumped_runs_need_no_trust(tmp_path, name):
    """Whatever they have beside the model."""
    cfg = get_config(f"{name}.py")
    cfg.dataloader.objects = [made_here, partial(made_here, 1)]
    LazyConfig.save(cfg, str(tmp_path / "teacher.yaml"))
    assert "python/name:tests.config.test_untrusted.made_here" in (tmp_path / "teacher.yaml").read_text()
    assert build_teacher(str(tmp_path / "teacher.yaml"))


def made_here(*args):
    raise AssertionError


@pytest.mark.parametrize("imported", [False, True])
def test_a_class_that_a_config_file_defines(tmp_path, imported):
    text = (
        "from d2kd.config import get_config\n"
        "from detectron2.modeling.meta_arch.retinanet import RetinaNet\n"
        "class Mine(RetinaNet):\n    pass\n"
        "model = get_config('common/models/retinanet.py').model\n"
        "model._target_ = Mine\n"
    )
    (tmp_path / "teacher.py").write_text(text)
    (tmp_path / "other.py").write_text("from .teacher import model\n")
    source = str(tmp_path / ("other.py" if imported else "teacher.py"))
    LazyConfig.save(LazyConfig.load(source), str(tmp_path / "config.yaml"))
    with pytest.raises(ValueError, match="it names Mine, which a config file defines, .*: give the LazyConfig .py"):
        build_teacher(str(tmp_path / "config.yaml"))
    assert type(build_teacher(source)).__name__ == "Mine"


def test_objects_in_the_model_that_are_not_trusted(tmp_path):
    for value in (made_here, partial(made_here, 1), partial(nn.LayerNorm, made_here), ShapeSpec(channels=made_here)):
        (tmp_path / "x.yaml").write_text(yaml.dump({"model": {"a": value}}))
        with pytest.raises(ValueError, match=r"it names tests.config.test_untrusted.made_here, expected"):
            check_targets(read_yaml(str(tmp_path / "x.yaml")))
        assert read_yaml(str(tmp_path / "x.yaml"), trust=["tests"]) is not None


def test_values_that_dumped_configs_hold(tmp_path):
    values = dict(norm=partial(nn.LayerNorm, eps=1e-6), act=nn.GELU, shape=ShapeSpec(channels=3), sizes=(1, 2.5))
    (tmp_path / "x.yaml").write_text(yaml.dump(values))
    found = read_yaml(str(tmp_path / "x.yaml"))
    norm = found.pop("norm")
    assert isinstance(norm, functools.partial) and norm.func is nn.LayerNorm and norm.keywords == {"eps": 1e-6}
    assert found == {key: value for key, value in values.items() if key != "norm"}


def test_detectron2s_own_retinanet_config(tmp_path):
    """Its anchors are computed by the file."""
    text = '!!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"]'
    (tmp_path / "base.yaml").write_text(f"MODEL: {{ANCHOR_GENERATOR: {{SIZES: {text}}}}}")
    sizes = read_yaml(str(tmp_path / "base.yaml"))["MODEL"]["ANCHOR_GENERATOR"]["SIZES"]
    assert sizes == [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]


def test_a_download_that_is_no_config_is_not_kept(server, tmp_path):
    served = tmp_path / "served" / "teacher.yaml"
    served.write_text("<!DOCTYPE html><html>sign in</html>")
    url = f"{server}/teacher.yaml"
    with pytest.raises(ValueError, match=f"The download of {url} is not kept: correct the URL, or try again"):
        build_teacher(url)
    cfg = get_config("common/models/gfl.py")
    cfg.model.backbone.bottom_up.stages.depth = 18
    cfg.model.backbone.bottom_up.stages.stride_in_1x1 = False
    del cfg.model.backbone.bottom_up.stages.stride_in_1x1
    LazyConfig.save(cfg, str(served))
    assert type(build_teacher(url)).__name__ == "GFL"


def test_a_program_from_elsewhere_is_not_run(server, made, tmp_path):
    (tmp_path / "served" / "teacher.py").write_text((tmp_path / "evil.py").read_text())
    with pytest.raises(ValueError, match=r"teacher.py', a program, and no code from elsewhere is run"):
        build_teacher(f"{server}/teacher.py")


@pytest.mark.parametrize(
    "target", ["os.system", "torch.hub.load", "torch.os.system", "d2kd.config.teacher_file.build_teacher", "no.such"]
)
def test_a_run_names_no_program(target):
    with pytest.raises(ValueError, match=f"it names {target}, and of a YAML file parts of detectors"):
        check_run({"model": [{"backbone": {"_target_": target}}]})


def test_a_run_may_name_ones_own_code():
    check_run({"model": {"_target_": "tests.helpers.build_detector"}, "optimizer": {"_target_": "torch.optim.SGD"}})


@pytest.mark.parametrize("name", ["coco/retinanet_r50_crosskd.py", "digits/gfl_ld.py"])
def test_a_runs_config_is_read_again(name, tmp_path):
    cfg = load_config(name)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"))
    assert again.train == cfg.train and again.model.losses.keys() == cfg.model.losses.keys()
