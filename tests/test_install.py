"""tools/install.py, run in throw-away environments whose packages and pip are stubs."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "fvcore",
    "iopath",
    "omegaconf",
    "numpy",
    "pycocotools",
    "matplotlib",
    "Pillow",
    "setuptools",
    "wheel",
)
EXTRA_PACKAGES = ("scikit-learn", "scikit-image", "timm", "pytest", "ruff", "tensorboard")
NMS = "operator torchvision::nms does not exist"


def _load_install():
    # by path: Detectron2 installs a package named `tools` of its own
    spec = importlib.util.spec_from_file_location("d2kd_install", ROOT / "tools/install.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = _load_install()


def stub(site, name, version, body=""):
    """Writes a package that says no more than that it is there. (Its source is also part of the stub pip.)"""
    folder = Path(site, name)
    Path(folder, "modeling/meta_arch").mkdir(parents=True, exist_ok=True)
    Path(folder, "modeling/meta_arch/dense_detector.py").touch()
    Path(folder, "__init__.py").write_text(body)
    info = Path(site, f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir(exist_ok=True)
    Path(info, "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# Records its calls, fails where FAIL occurs in the arguments, and else "installs" what they name.
PIP = """
import json, os, re, sys
from pathlib import Path
{stub}
site, arguments = Path(__file__).parents[1], sys.argv[1:]
if "--version" in arguments:
    sys.exit()
constraints = Path(arguments[arguments.index("-c") + 1]).read_text().split() if "-c" in arguments else []
with open(site / "calls.jsonl", "a") as file:
    file.write(json.dumps([arguments, constraints]) + "\\n")
if os.environ.get("FAIL", "\\n") in " ".join(arguments):
    sys.exit("some noise\\nERROR: Could not find a version that satisfies the requirement\\nmore noise")
for argument in arguments[arguments.index("install") + 1:] if "install" in arguments else []:
    if argument == {root!r}:
        (site / "d2kd.pth").write_text(argument)
    elif "detectron2" in argument:
        stub(site, "detectron2", "0.6")
    elif argument[0] not in "-/":
        name = re.match("[A-Za-z0-9_-]+", argument).group()
        stub(site, name, "99.0", os.environ.get("BODY_" + name, ""))
"""


class Environment:
    """A virtual environment with a stub pip; ``calls``: the arguments and constraints it was given."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin/python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        stub(self.site, "pip", "99.0")
        source = PIP.format(stub=inspect.getsource(stub), root=str(ROOT))
        (self.site / "pip/__main__.py").write_text(source)

    def fill(self, *without: str) -> None:
        for name in (*PACKAGES, *EXTRA_PACKAGES, "torch", "torchvision", "detectron2", "ninja"):
            if name not in without:
                stub(self.site, name, "99.0")
        if "d2kd" not in without:
            (self.site / "d2kd.pth").write_text(str(ROOT))

    @property
    def calls(self) -> list[tuple[list[str], list[str]]]:
        file = self.site / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            (call[call.index("install") + 3 :] if "install" in call else call, c) for call, c in map(json.loads, lines)
        ]

    def install(self, extra: str = "dev", **variables: str) -> subprocess.CompletedProcess:
        environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DETECTRON2")}
        environ["TMPDIR"] = str(self.site.parent)  # where pip's errors are kept
        command = [str(self.python), str(ROOT / "tools/install.py"), extra]
        return subprocess.run(command, env={**environ, **variables}, capture_output=True, text=True, check=False)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def assert_one_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("extra", ["base", "demo", "dev"])
def test_nothing_is_touched_where_nothing_is_missing(environment: Environment, extra: str) -> None:
    environment.fill()
    result = environment.install(extra)
    assert (result.returncode, result.stderr, environment.calls) == (0, "", [])
    assert len(result.stdout.splitlines()) == 1


def test_from_scratch_and_again(environment: Environment) -> None:
    result = environment.install()
    assert result.returncode == 0, result.stderr
    pair, packages, d2kd, detectron2 = (arguments for arguments, _ in environment.calls)
    assert pair == ["torch", "torchvision"]
    assert {install.name_of(name) for name in packages} == {*PACKAGES, *EXTRA_PACKAGES, "ninja"}
    assert "setuptools>=70.1" in packages
    assert d2kd == ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    assert detectron2 == ["--no-build-isolation", install.DETECTRON2]
    assert "02b5c4e295e990042a714712c21dc79b731e8833" in install.DETECTRON2

    environment.install()
    assert len(environment.calls) == 4


def test_demo_does_not_bring_the_tests_needs(environment: Environment) -> None:
    environment.fill(*EXTRA_PACKAGES)
    assert environment.install("demo").returncode == 0
    assert [arguments for arguments, _ in environment.calls] == [["scikit-learn", "scikit-image"]]


def test_d2kd_of_another_clone_is_replaced(environment: Environment) -> None:
    environment.fill("d2kd")
    stub(environment.site.parent, "d2kd", "0.1.0")
    (environment.site / "d2kd.pth").write_text(str(environment.site.parent))
    assert environment.install().returncode == 0
    assert [arguments[-1] for arguments, _ in environment.calls] == [str(ROOT)]


def test_d2kd_that_shadows_this_clone_is_named(environment: Environment, tmp_path: Path) -> None:
    environment.fill()
    stub(tmp_path, "d2kd", "0.1.0")
    assert_one_sentence(environment.install(PYTHONPATH=str(tmp_path)), str(tmp_path / "d2kd"), "PYTHONPATH")


def test_old_setuptools_is_replaced(environment: Environment) -> None:
    environment.fill("setuptools")
    stub(environment.site, "setuptools", "65.5.0")
    environment.install()
    assert [arguments for arguments, _ in environment.calls] == [["setuptools>=70.1"]]


@pytest.mark.parametrize("missing, present", [("torchvision", "torch"), ("torch", "torchvision")])
def test_half_a_pair_is_pinned(environment: Environment, missing: str, present: str) -> None:
    environment.fill(missing)
    assert environment.install().returncode == 0
    assert environment.calls == [(["torch", "torchvision"], [f"{present}==99.0"])]


def test_torch_that_pip_does_not_know_is_not_replaced(environment: Environment) -> None:
    environment.fill("torchvision")
    shutil.rmtree(environment.site / "torch-99.0.dist-info")
    assert_one_sentence(environment.install(), "torch is present", "install the torchvision that fits it")
    assert environment.calls == []


def test_misfit_of_torch_and_torchvision(environment: Environment) -> None:
    environment.fill("torchvision", "fvcore")
    stub(environment.site, "torchvision", "99.0", f"raise RuntimeError({NMS!r})")
    assert_one_sentence(environment.install(), "torch and torchvision do not fit each other", NMS, "same index")
    assert environment.calls == []


def test_new_torchvision_that_does_not_fit_is_taken_back(environment: Environment) -> None:
    environment.fill("torchvision")
    result = environment.install(BODY_torchvision=f"raise RuntimeError({NMS!r})")
    assert_one_sentence(result, "do not fit each other")
    assert [arguments for arguments, _ in environment.calls][1:] == [["uninstall", "--yes", "torchvision"]]


def test_torch_that_does_not_import(environment: Environment) -> None:
    environment.fill()
    (environment.site / "torch/__init__.py").write_text("raise ImportError('libcudart')")
    (environment.site / "torchvision/__init__.py").write_text("import torch")
    assert_one_sentence(environment.install(), "torch cannot be imported", "libcudart")


def test_without_detectron2_the_rest_is_installed_and_a_sentence_says_what_to_do(
    environment: Environment,
) -> None:
    environment.fill("detectron2", "fvcore", "pytest")
    result = environment.install(FAIL="detectron2.git")
    assert_one_sentence(result, "detectron2", "ERROR: Could not find a version", "DETECTRON2=/path")
    assert len(environment.calls) == 2
    assert (environment.site / "fvcore").exists() and (environment.site / "pytest").exists()


def test_detectron2_from_the_environment(environment: Environment, tmp_path: Path) -> None:
    environment.fill("detectron2")
    source = tmp_path / "my detectron2"
    source.mkdir()
    assert environment.install(DETECTRON2=str(source)).returncode == 0
    assert [arguments for arguments, _ in environment.calls] == [["--no-build-isolation", str(source)]]


def test_detectron2_that_is_another_package(environment: Environment) -> None:
    environment.fill()
    shutil.rmtree(environment.site / "detectron2/modeling")
    assert_one_sentence(environment.install(), "is not Detectron2, or too old", "uninstall it")


def test_detectron2_source(tmp_path: Path) -> None:
    assert install.detectron2_source({}) == install.DETECTRON2
    assert install.detectron2_source({"DETECTRON2": " "}) == install.DETECTRON2
    requirement = "detectron2 @ git+https://example.com/fork.git"
    assert install.detectron2_source({"DETECTRON2": requirement}) == requirement
    with pytest.raises(install.InstallError, match="does not exist"):
        install.detectron2_source({"DETECTRON2": str(tmp_path / "nothing")})
    with pytest.raises(install.InstallError, match="stranger's package"):
        install.detectron2_source({"DETECTRON2": "detectron2"})


def test_externally_managed_python_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(install.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    with pytest.raises(install.InstallError, match="make a virtual environment"):
        install.require_pip()
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    install.require_pip()  # a virtual environment of the same Python may install


@pytest.mark.parametrize(
    "requirement, version, expected",
    [
        ("setuptools>=70.1", "65.5.0", False),
        ("setuptools>=70.1", "70.1", True),
        ("setuptools>=70.1", "70.1.0", True),
        ("setuptools>=70.1.0", "70.1", True),
        ("setuptools>=70.1", "100.0.0.post2024", True),
        ("fvcore>=0.1.5,<0.1.6", "0.1.5.post20221221", True),
        ("numpy", "1.0", True),
        ("numpy", None, False),
    ],
)
def test_satisfied(requirement: str, version: str | None, expected: bool) -> None:
    assert install.satisfied(requirement, version) is expected


@pytest.mark.parametrize("extra", ["base", "demo", "dev"])
def test_detectron2_is_never_a_requirement(extra: str) -> None:
    names = [install.name_of(requirement) for requirement in install.read_requirements(extra)]
    assert {"torch", "torchvision", "fvcore"} <= set(names)
    assert "detectron2" not in names
