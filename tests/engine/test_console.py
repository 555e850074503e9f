"""What a run prints, in a terminal and elsewhere."""

import io
import logging
import re
import sys

import pytest

from d2kd.engine import Console
from tests.engine.test_train import run, write_distilled


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text):
    """The lines that a terminal shows in the end, and every state of a line that was rewritten."""
    states = [line.split("\r\033[K") for line in text.split("\n")]
    return [line[-1] for line in states], [state for line in states for state in line]


def records(console):
    """Prints a record of each kind, with a line of progress."""
    for name, level, message in (
        ("detectron2.d2kd.engine.train", logging.INFO, "of d2kd"),
        ("detectron2.data.build", logging.INFO, "of Detectron2"),
        ("detectron2.d2kd.engine.train", logging.INFO, "Model:\nhas lines"),
        ("detectron2.utils.events", logging.INFO, "iter: 4"),
        ("detectron2.evaluation.evaluator", logging.INFO, "Inference done 3/9"),
        ("fvcore.common", logging.WARNING, "a warning"),
        ("detectron2.engine.train_loop", logging.ERROR, "an error"),
    ):
        if message == "iter: 4":
            console.status("4/9  loss 1.0")
        console.emit(logging.LogRecord(name, level, "x.py", 1, message, (), None))


def test_elsewhere_there_are_plain_lines():
    stream = io.StringIO()
    records(Console(stream))
    said = [re.sub(r"\[\d\d/\d\d \d\d:\d\d:\d\d\]", "[]", line) for line in stream.getvalue().splitlines()]
    assert said == ["[] of d2kd", "[] iter: 4", "WARNING: [] a warning", "ERROR: [] an error"]
    assert "\033" not in stream.getvalue()


def test_in_a_terminal_one_line_is_rewritten(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    console = Console(stream)
    records(console)
    lines, states = screen(stream.getvalue())
    assert "4/9 loss 1.0" in states
    assert [line.partition("] ")[2] for line in lines[:-1]] == ["of d2kd", "a warning", "an error"]
    assert lines[-1] == "Inference done 3/9"  # stays below what is printed
    assert "\033[33mWARNING: \033[0m" in stream.getvalue()
    console.status("x" * 100)
    assert screen(stream.getvalue())[0][-1] == "x" * 29
    console.status("")
    assert screen(stream.getvalue())[0][-1] == ""


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_without_colours(monkeypatch, variable):
    """NO_COLOR: the line is still rewritten; a dumb terminal cannot do that."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, "1" if variable == "NO_COLOR" else "dumb")
    stream = Terminal()
    records(Console(stream))
    assert not re.search(r"\033\[\d*m", stream.getvalue())
    assert ("\r\033[K" in stream.getvalue()) == (variable == "NO_COLOR")


def test_quiet():
    stream = Terminal()
    records(Console(stream, quiet=True))
    assert [line.partition("] ")[2] for line in stream.getvalue().splitlines()] == ["a warning", "an error"]


@pytest.fixture(scope="module")
def distilled(dataset, tmp_path_factory):
    return write_distilled(tmp_path_factory.mktemp("console"))


def printed(monkeypatch, stream, output, *argv, config):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("d2kd.engine.console._SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    run(output, *argv, config=config)
    return stream.getvalue()


def test_a_run_in_a_terminal(distilled, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    text = printed(monkeypatch, Terminal(), tmp_path, "train.ema={decay: 0.5}", config=distilled)
    lines, states = screen(text)
    begins = [line.partition("] ")[2] for line in lines]
    start = begins.index("Starting training from iteration 0")
    assert start < 24  # a screen
    for said in (
        "Device: cpu, 1 process, float32",
        "Teacher: RetinaNet, 0.02 M parameters",
        "Student: RetinaNet, 0.02 M parameters, 0.02 M of them trained",
        "Distillation: bckd_cls, bckd_loc",
        "Schedule: 4 iterations, SGD, learning rate 0.01; evaluation on tiny:",
        "Training data: 8 images, 4 an iteration",
        f"Output: {tmp_path} (log.txt has",
    ):
        assert any(line.startswith(said) for line in begins[:start]), (said, begins[:start])
    third = next(state for state in states if state.startswith("3/4 75%"))
    progress = (
        r"3/4 75% \| ETA 0:00:0\d, [\d.]+ s/it \| AP 0.00, ema/AP 0.00 \| total_loss [\d.]+, .*kd_bckd_cls [\d.]+"
    )
    assert re.match(progress, third), third
    assert sum(line.startswith("After ") and "AP 0.00" in line for line in begins) == 2
    assert "iter: " not in text and "Average Precision" not in text and "Environment" not in text
    assert lines[-1] == ""

    log = (tmp_path / "log.txt").read_text()
    for kept in ("Environment info", "Command line arguments", "Contents of ", "DistilledDetector(", "eta: ",
                 "Start inference on", "Training data: 8 images"):  # fmt: skip
        assert kept in log, kept
    assert "\033" not in log


def test_quiet_and_evaluation_alone(distilled, tmp_path, monkeypatch):
    short = ("train.max_iter=1", "train.eval_period=0")
    text = printed(monkeypatch, io.StringIO(), tmp_path, "--quiet", *short, config=distilled)
    assert all(line.startswith("WARNING") for line in text.splitlines()), text
    assert "Starting training" in (tmp_path / "log.txt").read_text()
    weights = f"train.init_checkpoint={tmp_path / 'model_final.pth'}"
    text = printed(monkeypatch, io.StringIO(), tmp_path, "--eval-only", weights, config=distilled)
    assert f"{tmp_path / 'model_final.pth'}: AP 0.00" in text
