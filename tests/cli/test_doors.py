"""tools/*.py and `python -m d2kd.cli.*`: the same commands, whose errors are one sentence."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOORS = {
    "benchmark": "benchmark",
    "compare": "compare",
    "convert_mmdet_checkpoint": "convert",
    "demo": "demo",
    "export_student": "export",
    "train_net": "train",
}
DOOR = """\
#!/usr/bin/env python3
from d2kd.cli.{} import main

if __name__ == "__main__":
    raise SystemExit(main())
"""


def test_every_tool_is_a_door():
    tools = {path.stem: path for path in (ROOT / "tools").glob("*.py") if path.stem != "install"}
    assert set(tools) == set(DOORS)
    for name, path in tools.items():
        assert path.read_text() == DOOR.format(DOORS[name]), name
        assert os.access(path, os.X_OK), name


@pytest.mark.parametrize("module", DOORS.values())
def test_a_command_returns_its_exit_status(module):
    main = importlib.import_module(f"d2kd.cli.{module}").main
    signature = inspect.signature(main)
    assert signature.return_annotation == "int"
    assert [parameter.default for parameter in signature.parameters.values()] == [None]


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (
            ["-m", "d2kd.cli.train", "--config-file", str(ROOT / "configs/digits/fcos_crosskd.py"), "train.seed=-1"],
            r"d2kd train: train.seed is -1, expected a whole number >= 0.\n",
        ),
        (
            [str(ROOT / "tools/convert_mmdet_checkpoint.py"), *"no.pth x.pth --detector gfl --depth 18".split()],
            r"d2kd convert: .*no\.pth.*\n",
        ),
    ],
)
def test_errors_are_one_sentence(argv, sentence, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", *argv]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(sentence, done.stderr)
    assert list(tmp_path.iterdir()) == []
