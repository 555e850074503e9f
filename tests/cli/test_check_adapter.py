"""d2kd check-adapter."""

import re

import pytest

import d2kd
from d2kd.cli.check_adapter import main
from tests.helpers import build_detector

MODEL = """
from detectron2.config import LazyCall as L
import d2kd
from tests.helpers import build_detector
{code}
"""
STUDENT = 'model = L(build_detector)(family="FCOS")'
DISTILLED = """
from d2kd.losses import BinaryClassificationKD
from d2kd.modeling import DistilledDetector
model = L(DistilledDetector)(
    student=L(build_detector)(family="FCOS"),
    teacher=dict(model=L(build_detector)(family="{family}", width=8), checkpoint="no/such.pth"),
    losses=dict(cls=L(BinaryClassificationKD)()),
)
"""


@pytest.fixture
def check(tmp_path):
    def run(code, *overrides):
        path = tmp_path / "mine.py"
        path.write_text(MODEL.format(code=code))
        return main(["--config-file", str(path), *overrides])

    return run


def test_a_plain_detector(check, capsys):
    assert check(STUDENT) == 0
    assert capsys.readouterr().out == f"model: {d2kd.check_adapter(build_detector('FCOS'))}\n"
    assert check(STUDENT, "model.num_classes=7") == 0
    assert "classes     7" in capsys.readouterr().out


def test_student_and_teacher_without_weights(check, capsys):
    assert check(DISTILLED.format(family="GFL")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("model.student: FCOS: its adapter fits\n")
    assert "\nmodel.teacher.model: GFL: its adapter fits\n" in printed


def test_a_baseline_has_no_teacher(check, capsys):
    assert check(DISTILLED.format(family="GFL"), "model.losses=null", "model.teacher=null") == 0
    assert "teacher" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "code, sentence",
    [
        ("import torch\nmodel = L(torch.nn.Linear)(in_features=1, out_features=1)", "model: .*Linear"),
        ("x = 1", "mine.py has no model, expected a LazyConfig with a model node"),
    ],
)
def test_errors_are_one_sentence(check, code, sentence, capsys):
    assert check(code) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.splitlines()[-1]
    assert line.startswith("d2kd check-adapter: ") and re.search(sentence, line)
    assert "Traceback" not in printed.err


def test_a_config_that_is_nowhere(capsys):
    assert main(["--config-file", "digits/fcos_croskd.py"]) == 2
    assert "did you mean digits/fcos_crosskd.py" in capsys.readouterr().err
