"""d2kd check, on images that a tiny detector knows."""

import json
import re

import pytest
import torch

from d2kd.cli.check import main
from tests.helpers import build_detector
from tests.modeling.distillation.known_scene import teacher

CONFIG = """
import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import LinearParamScheduler

import d2kd
from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.modeling import DistilledDetector
from tests.helpers import build_detector
from tests.modeling.distillation.known_scene import make_batches

model = L(DistilledDetector)(
    student=L(build_detector)(family="FCOS", seed=1),
    teacher=dict(
        model=L(build_detector)(family="FCOS", width=8, fpn=16, conv_dims=[16]),
        checkpoint="{checkpoint}",
        input_format=None,
        class_map=None,
    ),
    losses=dict(cls=L(BinaryClassificationKD)(), loc=L(IoULocalizationKD)(region="gap")),
)
optimizer = L(torch.optim.SGD)(params=L(get_default_optimizer_params)(), lr=0.001)
lr_multiplier = L(LinearParamScheduler)(start_value=1.0, end_value=1.0)
dataloader = dict(train=L(make_batches)(), test=L(make_batches)(), evaluator=L(make_batches)())
train = d2kd.get_config("common/train.py").train
train.update(max_iter=3600, device="cpu", output_dir="{output}")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "model_final.pth"
    torch.save({"model": teacher().state_dict()}, path)
    return path


@pytest.fixture
def check(tmp_path, checkpoint):
    config = tmp_path / "mine.py"
    config.write_text(CONFIG.format(checkpoint=checkpoint, output=tmp_path / "output"))
    return lambda *argv: main(["--config-file", str(config), "--batches", "8", *map(str, argv)])


DRAWN = """
import numpy as np
from tests.modeling.distillation.known_scene import make_batch

def draw_batches():
    while True:
        yield make_batch(int(np.random.randint(1000)))

dataloader["train"] = L(draw_batches)()
train.max_iter = 10
"""


def test_a_loader_that_draws_its_order_from_numpy_gives_the_same_report(tmp_path, checkpoint):
    """As Detectron2's does."""
    config = tmp_path / "drawn.py"
    config.write_text(CONFIG.format(checkpoint=checkpoint, output=tmp_path / "output") + DRAWN)
    found = []
    for name in ("first.json", "second.json"):
        main(["--config-file", str(config), "--batches", "8", "--json", str(tmp_path / name)])
        found.append(json.loads((tmp_path / name).read_text()))
    assert found[0]["preflight"] == found[1]["preflight"]
    assert re.search(r"; 10 of them, with their data, \d+ (s|minutes)\.$", found[0]["verdict"][3])


def test_a_pair_that_fits(check, tmp_path, capsys):
    assert check("--json", tmp_path / "check.json") == 0
    printed = capsys.readouterr().out
    *_, last = printed.split("\n\n")
    lines = last.splitlines()
    assert [line.partition(":")[0] for line in lines[:5]] == ["Teacher", "Student", "Terms", "Cost", "Verdict"]
    assert lines[0].startswith("Teacher: knows this data: 1.00 of 64 objects right, 1.00 found.")
    assert lines[1].endswith("the teacher 1.00 and 1.00: the rest is to be learnt.")
    assert re.fullmatch(r"Cost:    a step takes .* s, .* times one without a teacher; 3600 of them, .*", lines[3])
    assert lines[4] == "Verdict: go."
    for expected in (r"strides +8, 16, 32", r"classes +3 +3", r"same anchors +yes", r"projectors +none"):
        assert re.search(expected, printed), expected
    assert (tmp_path / "output" / "check.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["preflight"]["teacher"]["right"] > 0.95 > found["preflight"]["student"]["right"]
    assert found["preflight"]["stop"] is None
    assert all(found["terms"][name]["gradient_share"] > 0 for name in ("cls", "loc"))
    assert found["cost"]["hours"] == pytest.approx(found["cost"]["seconds"] + found["cost"]["data_seconds"])
    assert found["verdict"] == lines[:5]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_teacher_that_knows_nothing(check, tmp_path, capsys):
    torch.save({"model": build_detector("FCOS", seed=9, width=8, fpn=16, conv_dims=(16,)).state_dict()}, tmp_path / "x")
    assert check(f"model.teacher.checkpoint={tmp_path / 'x'}") == 2
    printed = capsys.readouterr().out
    assert "\nTeacher: The teacher is about as good as chance on this data" in printed
    assert "\nVerdict: do not train with this teacher." in printed


def test_a_teacher_that_is_warned_of(check, capsys):
    assert check("model.teacher.input_format=RGB") == 2
    assert "input_format=BGR" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["model.losses=null", "model.teacher=null"], "has no teacher and losses to check"),
        (["model.teacher.checkpoint=no/such.pth"], "there is no such file"),
        (["--batches", "0"], "--batches is 0, expected at least 1"),
    ],
)
def test_errors_are_one_sentence(check, overrides, sentence, capsys):
    assert check(*overrides) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert re.search(f"^d2kd check: .*{sentence}", printed.err, flags=re.MULTILINE)


def test_a_plain_detector(tmp_path, capsys):
    config = tmp_path / "plain.py"
    config.write_text(CONFIG.format(checkpoint="", output=tmp_path) + "model = model.student\n")
    assert main(["--config-file", str(config)]) == 2
    assert "plain.py is a FCOS, expected what d2kd.distill() returns" in capsys.readouterr().err
