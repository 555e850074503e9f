"""d2kd check --device, on the CPU."""

import json
import re
from pathlib import Path
from threading import Event

import torch

from d2kd.cli import check, check_device, check_device_runs, check_device_steps
from d2kd.cli.check_device_parts import LANES, PARTS, Check, run_part
from d2kd.cli.check_device_table import Part, Row, to_markdown

CPU = torch.device("cpu")


def test_steps_and_ranks(tmp_path, monkeypatch, capsys):
    """In processes of their own; the table and the json have every family in every precision, and two ranks."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "check.json"
    assert check.main(["--device", "cpu", "--parts", "ranks", "steps", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert list(result["parts"]) == ["steps", "ranks"] and "CPU" in result["environment"]["device"]
    steps, ranks = (result["parts"][name]["rows"] for name in ("steps", "ranks"))
    assert [row["what"] for row in steps] == [
        f"{family}, {precision}, 2 methods"
        for family in ("RetinaNet", "FCOS", "GFL", "ATSS")
        for precision in ("fp32", "fp16", "bf16")
    ]
    for row in steps:
        differences = row["figures"]["terms"].values()
        if "fp32" in row["what"]:
            assert max(differences) < 1e-5 and max(row["figures"]["gradients"].values()) < 1e-5
        else:
            assert 0 < max(differences)
    (row,) = ranks
    assert row["what"] == "two gloo ranks, GFL, bckd and ld"
    assert {"bckd loss_cls", "ld loss_kd_ld_vlr"} < row["figures"]["terms"].keys()
    assert max(row["figures"]["terms"].values()) < 1e-5
    assert all(row["ok"] for row in (*steps, *ranks))
    assert capsys.readouterr().out.count("| ok") == 13


def test_a_difference_is_a_failure(monkeypatch):
    """Of the term that differs most, and of values that are not numbers."""
    limits = {None: (1e-3, 1e-2)}
    monkeypatch.setattr(check_device_steps, "LIMITS", limits)
    monkeypatch.setattr(check_device_steps, "FAMILIES", {"gfl": "GFL"})
    monkeypatch.setattr(check_device_steps, "FEW_METHODS", ("bckd",))
    build, built = check_device_steps.distill_pair, []

    def other(student, teacher, losses):
        built.append(losses)
        if len(built) == 2:
            losses["bckd_cls"].weight *= factor
        return build(student, teacher, losses)

    monkeypatch.setattr(check_device_steps, "distill_pair", other)
    for factor, found in ((1.1, "terms 1.0e-01 (bckd loss_kd_bckd_cls)"), (1.0, "terms 0.0e+00 (")):
        built.clear()
        (row,) = check_device_steps.check_steps(CPU, None)
        assert row.found.startswith(found) and row.ok is (factor == 1)


def test_a_part_that_fails_says_why(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/teacher").touch()  # a file, where the teacher's run wants its folder
    (row,) = run_part("digits", "cpu", tmp_path, Event()).rows
    assert row.ok is False
    assert re.fullmatch(
        r"d2kd train: train.output_dir=\S+/teacher is a file, expected a folder.* \(see \S+digits.log\)", row.found
    )


def test_a_part_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, "steps", Check(check_device_steps.check_steps, 0.1))
    (row,) = run_part("steps", "cpu", tmp_path, Event()).rows
    assert row.ok is False and row.found.startswith("not done after 0 s (see ")


def test_the_other_parts_run(monkeypatch, capsys):
    def run(name, device, folder, stop):
        ok = {"steps": False, "ranks": None}.get(name, True)
        return Part(seconds=1.0, rows=[Row(what="that", found="this", ok=ok)])

    monkeypatch.setattr(check_device, "run_part", run)
    assert check.main(["--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert re.findall(r"^\| (\w+) .*\| (ok|FAILED|not run) +\|$", out, re.MULTILINE) == [
        ("benchmark", "ok"),
        ("tests", "ok"),
        ("steps", "FAILED"),
        ("ranks", "not run"),
        ("digits", "ok"),
    ]
    assert err.endswith("d2kd check: failed: steps\n")
    assert check.main(["--device", "cpu", "--parts", "ranks", "digits"]) == 0


def test_all_is_done_in_eight_minutes():
    parts = [name for lanes in LANES for lane in lanes for name in lane]
    assert sorted(parts) == sorted(PARTS)
    assert sum(max(sum(PARTS[name].seconds for name in lane) for lane in lanes) for lanes in LANES) <= 8 * 60


def test_a_gpu_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--device"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("d2kd check: no CUDA device was found, expected a GPU that torch can use: ")


def test_a_wheel_has_no_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(check_device_runs.d2kd, "__file__", str(tmp_path / "d2kd/__init__.py"))
    (row,) = check_device_runs.check_tests(CPU, tmp_path)
    assert row.ok is None and row.found == "needs a clone: an installed d2kd has no tests"
    assert "| not run" in to_markdown({"tests": Part(seconds=0.0, rows=[row])})
