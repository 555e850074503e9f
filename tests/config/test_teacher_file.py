"""distill() with a teacher that is given by its own config file."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from d2kd.config import distill
from tests.helpers import make_batch, run_step
from tests.nodes import checkpoint_of, fcos, retinanet
from tests.yacs_projects import write_teacher

LAZY = """
from detectron2.config import LazyCall as L
from tests.nodes import fcos
dataset = dict(num_classes=3)
model = fcos(num_classes="${dataset.num_classes}")
"""


@pytest.fixture(params=["py", "dumped", "yacs", "distilled yaml"])
def teacher_file(request, tmp_path):
    """(config file, checkpoint, prefix of the student's family) of a teacher."""
    path = tmp_path / "teacher.py"
    path.write_text(LAZY)
    if request.param == "yacs":
        keys = write_teacher(tmp_path)
        return keys["TEACHER_CONFIG"], keys["TEACHER_WEIGHTS"], retinanet
    cfg = LazyConfig.load(str(path))
    checkpoint = checkpoint_of(cfg.model, tmp_path)
    if request.param != "py":
        path = tmp_path / "teacher.yaml"
        if request.param == "distilled yaml":  # the teacher was a student once
            cfg.model = distill(cfg.model, teacher="nowhere.py", teacher_checkpoint="nowhere.pth", method="bckd")
        LazyConfig.save(cfg, str(path))
    return str(path), checkpoint, fcos


def test_a_teacher_given_by_its_file(teacher_file, tmp_path):
    path, checkpoint, student = teacher_file
    text = Path(path).read_text()
    Path(path).unlink()
    cfg = OmegaConf.create(
        dict(model=distill(student(), teacher=path, teacher_checkpoint=checkpoint, method="crosskd")),
        flags={"allow_objects": True},
    )
    cfg.model.teacher.engine = "eager"
    cfg.model.teacher.model.trust = ["tests"]  # its backbone is made by a function of this package
    LazyConfig.save(cfg, str(tmp_path / "run.yaml"))
    assert not (tmp_path / "run.yaml.pkl").exists()  # nothing in it was no text
    cfg = LazyConfig.load(str(tmp_path / "run.yaml"))
    model = instantiate(cfg.model)
    model.eval()(make_batch())  # without the file
    with pytest.raises(FileNotFoundError, match=r"model.teacher.model.config \(.*\) is '.*teacher.*', but there is no"):
        model.load_teacher()
    Path(path).write_text(text)
    assert run_step(model.train(), make_batch())["loss_kd_crosskd_cls"].item() > 0
    saved = torch.load(checkpoint, weights_only=False)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.teacher.detector.state_dict().items())


def test_a_path_object():
    assert distill(fcos(), teacher=Path("a/t.py"), method="bckd").teacher.model.config == "a/t.py"


@pytest.mark.parametrize("path", ["teacher.pth", "", "teacher"])
def test_a_path_of_no_config_file(path):
    with pytest.raises(ValueError, match=rf"distill\(\)'s teacher is '{path}', expected a yacs config \(.yaml\) or"):
        distill(fcos(), teacher=path, method="bckd")


@pytest.mark.parametrize("teacher", [dict(a=1), None, 3])
def test_what_is_no_teacher(teacher):
    with pytest.raises(TypeError, match="Expected teacher to be a model node with a _target_ or the path of a"):
        distill(fcos(), teacher=teacher, method="bckd")
