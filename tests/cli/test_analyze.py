"""d2kd analyze: what teacher, student and files cost, in one table."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

import d2kd
from d2kd.__main__ import main
from d2kd.cli import analyze as tool
from d2kd.config import load_config
from d2kd.config.nodes import made
from d2kd.export.analysis import time_images
from tests.bad_inputs.tiny import write_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path)
    detector = d2kd.student(made(load_config(config).model, "model"))
    torch.save({"model": detector.state_dict()}, "student.pth")
    return config, detector


def multiply_adds_of_convolutions(detector):
    """By hand, of an image of 64 x 64."""
    found = []

    def count(module, _, output):
        found.append(output.numel() * module.weight[0].numel())

    for module in detector.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    detector.eval()([{"image": torch.zeros(3, 64, 64)}])
    return sum(found)


def test_the_table(run, capsys):
    config, detector = run
    export = ["export", config, "student.pth", "--to", "onnx", "model.student.test_score_thresh=0.0"]
    assert main([*export, "--output", "x.onnx"]) == 0
    assert main([*export, "--output", "int8.onnx", "--int8", "2"]) == 0
    assert "calibrated with 2 training images" in capsys.readouterr().out
    options = ["--weights", "student.pth", "--onnx", "x.onnx", "int8.onnx", "--ap", "--rounds", "1"]
    assert main(["analyze", config, *options, "--json", "t.json", "model.student.test_score_thresh=0.0"]) == 0
    stated = capsys.readouterr().out
    result = json.loads(Path("t.json").read_text())
    rows = result["rows"]
    assert list(rows) == ["teacher", "student", "x.onnx", "int8.onnx"]
    parameters = sum(p.numel() for p in detector.parameters())
    assert rows["student"]["parameters"] == parameters
    assert rows["student"]["bytes"] == sum(x.nbytes for x in detector.state_dict().values())
    convolutions = multiply_adds_of_convolutions(detector)
    assert convolutions < rows["student"]["multiply_adds"] < 1.2 * convolutions  # the rest are norms
    assert rows["x.onnx"]["bytes"] == Path("x.onnx").stat().st_size
    assert rows["x.onnx"]["AP"] == pytest.approx(rows["student"]["AP"], abs=1e-6)
    assert all(row["seconds"] > 0 and 0 <= row["AP"] <= 100 for row in rows.values())
    table = [line for line in stated.splitlines() if line.startswith("|")]
    assert re.findall(r"[\w-]+(?: \w+)?", table[0]) == ["parameters", "multiply-adds", "size", "an image", "AP"]
    assert [line.split("|")[1].strip() for line in table[2:]] == list(rows)
    assert "4 images of dataloader.test, the first 64x64" in stated and "1 thread(s)" in stated


def test_ap_is_of_images_one_at_a_time(run, monkeypatch):
    """As an ONNX file is run; images of a batch are padded to one size."""
    sizes, forward = [], DenseDetector.forward
    monkeypatch.setattr(DenseDetector, "forward", lambda self, batch: sizes.append(len(batch)) or forward(self, batch))
    options = ["--weights", "student.pth", "--ap", "--rounds", "1", "model.student.test_score_thresh=0.0"]
    assert main(["analyze", run[0], *options, "+dataloader.test.batch_size=2"]) == 0
    assert set(sizes) == {1}


def test_without_weights_teacher_and_data_it_says_so(run, capsys):
    config, _ = run
    Path("teacher.pth").unlink()
    Path("birds.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "SIZE", (64, 64))
        assert main(["analyze", config, "--rounds", "1"]) == 0
    stated = capsys.readouterr().out
    assert "the student has random weights (--weights)" in stated
    assert re.search(r"the teacher has random weights and no AP: .*teacher.pth", stated)
    assert re.search(r"a random image is timed: .*birds.json", stated)
    assert "AP |" not in stated


@pytest.mark.parametrize(
    "options, said",
    [
        (["--ap"], "--ap needs the student's --weights"),
        (["--rounds", "0"], "--rounds is 0, expected at least 1"),
        (["--threads", "0"], "--threads is 0, expected at least 1"),
        (["what"], "'what' is no key=value override"),
    ],
)
def test_command_lines_that_mean_nothing(options, said, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["c.py", *options])
    assert said in capsys.readouterr().err


def test_times_are_medians_after_a_warm_up():
    calls = []

    def slow_at_first(image):
        calls.append(image)
        time.sleep(0.05 if len(calls) <= 3 or len(calls) == 5 else 0)

    found = time_images({"a": slow_at_first, "b": lambda image: None}, [torch.zeros(1), torch.ones(1)], rounds=2)
    assert list(found) == ["a", "b"] and found["a"] < 0.05
    assert len(calls) == 3 + 4 and [int(x) for x in calls[3:]] == [0, 1, 0, 1]
