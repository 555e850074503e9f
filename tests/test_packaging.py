"""What a wheel holds, what the package imports, and what the Makefile runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import d2kd

ROOT = Path(__file__).resolve().parents[1]
# Variables of an outer `make` or of a user that would reach the processes under test.
OUTER = ("PYTHONPATH", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "DETECTRON2")

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("detectron2", "omegaconf", "torchvision"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def run(*command: str, **options) -> subprocess.CompletedProcess:
    environ = {name: value for name, value in os.environ.items() if name not in OUTER}
    environ.update(options.pop("env", {}))
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of a wheel that is built from a copy of the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("d2kd", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    arguments = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    result = run(sys.executable, "-m", "pip", "wheel", *arguments, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"d2kd-{d2kd.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_every_module_and_every_config_and_no_other_package(site: Path) -> None:
    assert (site / "d2kd/py.typed").is_file()
    for folder, packaged in (("d2kd", site / "d2kd"), ("configs", site / "d2kd/configs")):
        expected = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
        assert expected, folder
        assert {path for path in expected if not (packaged / path).is_file()} == set()
    tops = {path.name for path in site.iterdir()}
    assert tops == {"d2kd", f"d2kd-{d2kd.__version__}.dist-info"}


def test_wheel_metadata(site: Path) -> None:
    lines = (site / f"d2kd-{d2kd.__version__}.dist-info/METADATA").read_text().splitlines()
    assert "Requires-Python: >=3.10" in lines
    assert any(line.endswith(": Apache-2.0") for line in lines)
    required = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")]
    assert {"torch", "torchvision"} <= set(required)
    assert not [line for line in required if line.startswith("detectron2")]
    assert {"Provides-Extra: demo", "Provides-Extra: timm", "Provides-Extra: dev"} <= set(lines)


def test_wheel_works_outside_the_clone(site: Path, tmp_path: Path) -> None:
    code = "import d2kd; print(d2kd.__file__); print(sorted(d2kd.get_config('common/train.py')))"
    result = run(sys.executable, "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert result.returncode == 0, result.stderr
    file, names = result.stdout.splitlines()[-2:]
    assert Path(file) == site / "d2kd/__init__.py"
    assert "'train'" in names


@pytest.mark.parametrize("module", ["d2kd.structures", "d2kd.losses", "d2kd.regions"])
def test_losses_and_regions_need_torch_and_fvcore_only(module: str) -> None:
    result = run(sys.executable, "-c", f"{BLOCK}import {module}", cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_block_of_the_test_above_blocks() -> None:
    result = run(sys.executable, "-c", f"{BLOCK}import detectron2.config", cwd=ROOT)
    assert "detectron2 is blocked" in result.stderr


def test_public_names() -> None:
    assert {"DistilledDetector", "distill", "get_config", "__version__"} <= set(dir(d2kd))
    assert d2kd.get_config is d2kd.config.get_config
    assert d2kd.DistilledDetector is d2kd.modeling.DistilledDetector
    with pytest.raises(AttributeError, match="module 'd2kd' has no attribute 'distil'"):
        d2kd.distil  # noqa: B018


# A Python that records how it is called, and fails where WHERE_IT_FAILS (a grep -E pattern) says.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$0.calls"
case "$*" in *pytest\\ -q*) echo "1 passed" ;; esac
! echo "$*" | grep -Eq "${WHERE_IT_FAILS:-^$}"
"""
INSTALL = "tools/install.py dev"
FIRST = "-m pytest -q --doctest-modules d2kd/losses d2kd/regions d2kd/structures tests/losses tests/regions"
REST = "-m pytest -q tests --ignore=tests/losses --ignore=tests/regions"


def make(folder: Path, target: str, fails: str = "^$") -> tuple[subprocess.CompletedProcess, list[str]]:
    python = folder / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    result = run("make", target, f"PYTHON={python}", cwd=ROOT, env={"WHERE_IT_FAILS": fails})
    calls = Path(f"{python}.calls")
    return result, calls.read_text().splitlines() if calls.exists() else []


def test_make_test_runs_every_test_once(tmp_path: Path) -> None:
    result, calls = make(tmp_path, "test")
    assert result.returncode == 0, result.stderr
    assert calls == [INSTALL, FIRST, REST]
    assert result.stdout.splitlines()[-1] == "1 passed"


@pytest.mark.parametrize("fails", [FIRST, REST])
def test_make_test_fails_if_either_part_does(tmp_path: Path, fails: str) -> None:
    result, calls = make(tmp_path, "test", f"^{fails}$")
    assert result.returncode != 0
    assert calls == [INSTALL, FIRST, REST]


def test_make_test_without_detectron2_runs_the_first_part_and_fails(tmp_path: Path) -> None:
    result, calls = make(tmp_path, "test", "install.py|import detectron2")
    assert result.returncode != 0
    assert FIRST in calls and REST not in calls
    assert "tests/losses tests/regions ran" in result.stderr
    assert "because Detectron2 is not installed" in result.stderr


def test_make_test_without_torch_stops_with_a_sentence(tmp_path: Path) -> None:
    result, calls = make(tmp_path, "test", "install.py|import fvcore")
    assert result.returncode != 0
    assert FIRST not in calls and REST not in calls
    assert "No test ran" in result.stderr


def test_make_demo_stops_where_the_install_step_fails(tmp_path: Path) -> None:
    assert make(tmp_path, "demo")[1] == ["tools/install.py demo", "tools/demo.py"]
    (tmp_path / "python.calls").unlink()
    result, calls = make(tmp_path, "demo", "install.py")
    assert result.returncode != 0
    assert calls == ["tools/install.py demo"]


def test_make_lint_runs_every_check_and_stops_where_one_fails(tmp_path: Path) -> None:
    checks = [
        "-c import importlinter",
        "-m ruff check",
        "-m ruff format --check",
        "-m mypy",
        "-c import importlinter.cli",
    ]
    result, calls = make(tmp_path, "lint")
    assert result.returncode == 0, result.stderr
    assert len(calls) == len(checks) and all(call.startswith(check) for call, check in zip(calls, checks))
    for check in checks:
        assert make(tmp_path, "lint", f"^{check}")[0].returncode != 0


def test_make_help_names_every_target(tmp_path: Path) -> None:
    result, _ = make(tmp_path, "help")
    assert [line.split()[1] for line in result.stdout.splitlines()] == [
        "help",
        "install",
        "demo",
        "test",
        "lint",
    ]
