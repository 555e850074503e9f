"""Runs that are killed, stopped or damaged, and then continued. `python3 -m tests.faults` kills many more."""

import json
import random
import re
import signal

import pytest

from tests.faults.runs import PERIOD, Lab, Operation, steps

LAST = "model_final.pth"


@pytest.fixture(scope="module", params=["FCOS", "GFL"])
def lab(request, tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("faults") / request.param, request.param)


@pytest.fixture(scope="module")
def fcos(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("faults") / "FCOS", "FCOS")


def copy_of(lab, name, last=LAST):
    """The straight run's folder under another name; ``last`` is what ``last_checkpoint`` names."""
    folder = lab.folder / name
    folder.mkdir()
    for path in (lab.folder / "straight").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "last_checkpoint").write_text(last)
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_killed_run_ends_with_the_same_weights(lab):
    outcome = lab.killed_at_random("killed", random.Random(0))
    assert outcome.identical, outcome.log
    assert outcome.lost <= PERIOD
    rows = [json.loads(line) for line in (lab.folder / "killed/metrics.json").read_text().splitlines()]
    iterations = [row["iteration"] for row in rows]
    assert iterations == sorted(set(iterations)) and iterations[-1] == 12  # the last is that of the evaluation
    assert len(iterations) >= 12  # one may be missing: killed between its checkpoint and its line
    assert len(list((lab.folder / "killed").glob("model_0*.pth"))) <= 2  # max_to_keep, over both parts


@pytest.mark.parametrize(
    "operation",
    [
        Operation("half a write", ".model_0000005.pth.partial", 0),
        Operation("os.rename", ".model_0000005.pth.partial", 0),
        Operation("os.rename", ".last_checkpoint.partial", 1),
        Operation("os.remove", "model_0000002.pth", 0),
    ],
    ids=lambda operation: f"{operation.event} {operation.file}".strip("."),
)
def test_a_save_that_is_killed_loses_one_period(fcos, operation):
    outcome = fcos.killed_at(f"{operation.event} {operation.file}".replace(" ", "_"), operation)
    assert outcome.identical, outcome.log
    assert outcome.lost <= PERIOD


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_a_run_after_a_checkpoint(fcos, number):
    process = fcos.signalled(number.name, number)
    assert process.exitcode == 130
    done = steps(fcos.folder / number.name)
    assert f"Iteration {done - 1} is saved: --resume goes on from there." in fcos.log(number.name)
    outcome = fcos.continued(number.name)
    assert outcome.identical, outcome.log
    assert f"Starting training from iteration {done}\n" in outcome.log


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(fcos):
    size = (fcos.folder / "straight" / LAST).stat().st_size
    process = fcos.start("full", largest_file=size // 2)
    process.join()
    assert process.exitcode == 2
    assert "model_0000002.pth cannot be written: File too large." in fcos.log("full").splitlines()[-1]
    assert "Traceback" not in fcos.log("full")
    assert not list((fcos.folder / "full").glob("*.pth")) and not list((fcos.folder / "full").glob("*.partial"))
    assert fcos.continued("full").identical


def damaged(folder):
    flip(folder / LAST)
    return rf"{LAST} is damaged: its entry .* is not what was written\. Going on from .*11\.pth, iteration 11"


def cut(folder):
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:1000])
    return rf"{LAST} is damaged: its 1000 bytes are no whole archive"


def empty(folder):
    (folder / LAST).write_bytes(b"")
    return rf"{LAST} is damaged: it has only 0 bytes\. Going on"


def without_tag(folder):
    (folder / "last_checkpoint").unlink()
    (folder / LAST).unlink()
    return r"last_checkpoint is missing, though .* has checkpoints\. Going on from .*model_0000011"


def outside(folder):
    (folder / "last_checkpoint").write_text("../teacher.pth")
    return r"last_checkpoint says '../teacher.pth', which is no file of"


@pytest.mark.parametrize("damage", [damaged, cut, empty, without_tag, outside])
def test_a_bad_last_checkpoint_is_named_and_the_one_before_continued(fcos, damage):
    folder = copy_of(fcos, damage.__name__)
    for name in ("last_checkpoint", LAST):
        assert (folder / name).is_file()
    message = damage(folder)
    outcome = fcos.continued(damage.__name__)
    assert re.search(message, outcome.log), outcome.log
    assert outcome.identical  # also where nothing was left to train: the last checkpoint is written again


def test_checkpoints_of_which_none_is_whole_are_refused(fcos):
    folder = copy_of(fcos, "none")
    for path in folder.glob("model_*.pth"):
        flip(path)
    process = fcos.start("none", "--resume")
    process.join()
    assert process.exitcode == 2
    assert (
        fcos.log("none")
        .splitlines()[-1]
        .startswith(f"d2kd train: --resume: No checkpoint in {folder} can be continued from")
    )


def test_a_damaged_teacher_is_refused(fcos):
    flip(fcos.folder / "teacher.pth")
    process = fcos.start("teacher")
    process.join()
    assert process.exitcode == 2
    assert "teacher.pth is damaged: its entry" in fcos.log("teacher").splitlines()[-1]
