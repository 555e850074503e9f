"""tools/install.py, run in throw-away environments whose packages and pip are stubs."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import packaging
import pytest

ROOT = Path(__file__).resolve().parents[1]
#: What each extra of setup.py brings, less the two that are pinned where they are present.
BASE = ("fvcore", "iopath", "omegaconf", "numpy", "pycocotools", "matplotlib", "Pillow", "scipy")
DEMO = ("scikit-learn", "scikit-image")
DEV = (
    "timm",
    "mlflow-skinny",
    "wandb",
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "import-linter",
    "pre-commit",
    "tensorboard",
    "setuptools",
    "wheel",
)
EXTRAS = {"": BASE, "[demo]": BASE + DEMO, "[dev]": BASE + DEMO + DEV}
VERSIONS = {"fvcore": "0.1.5", "iopath": "0.1.9", "omegaconf": "2.3.0"}  # setup.py bounds these
BUILD = ["setuptools>=70.1", "wheel", "ninja"]
NMS = "operator torchvision::nms does not exist"


def stub(site, name, version, body=""):
    """Writes a package that says no more than that it is there. (Its source is also part of the stub pip.)"""
    folder = Path(site, name)
    Path(folder, "modeling/meta_arch").mkdir(parents=True, exist_ok=True)
    Path(folder, "modeling/meta_arch/dense_detector.py").touch()
    Path(folder, "__init__.py").write_text(body)
    info = Path(site, f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir(exist_ok=True)
    Path(info, "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# Records its calls, fails where FAIL occurs in the arguments, and else "installs" what they name and lack.
PIP = """
import json, os, re, shutil, sys
from pathlib import Path
{stub}
site, arguments = Path(__file__).parents[1], sys.argv[1:]
arguments = arguments[arguments.index("install") + 1:]
with open(site / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if os.environ.get("FAIL", "\\n") in " ".join(arguments):
    sys.exit("some noise\\nERROR: Could not find a version that satisfies the requirement\\nmore noise")
for argument in arguments:
    if argument.startswith({root!r}):
        (site / "d2kd.pth").write_text({root!r})
        for name in {extras!r}[argument.removeprefix({root!r})]:
            for old in site.glob(name.replace("-", "_") + "-*.dist-info"):
                shutil.rmtree(old)
            stub(site, name, {versions!r}.get(name, "99.0"))
        for name in ("torch", "torchvision"):
            if not (site / name).exists():
                stub(site, name, "99.0", os.environ.get("BODY_" + name, ""))
    elif "detectron2" in argument:
        stub(site, "detectron2", "0.6")
"""


class Environment:
    """A virtual environment with a stub pip; ``calls``: the arguments of each ``pip install``."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = folder / "bin/python"
        self.site = next(folder.glob("lib/python*/site-packages"))
        stub(self.site, "pip", "99.0")
        source = PIP.format(stub=inspect.getsource(stub), root=str(ROOT), extras=EXTRAS, versions=VERSIONS)
        (self.site / "pip/__main__.py").write_text(source)

    def fill(self, *without: str) -> None:
        shutil.copytree(Path(packaging.__file__).parent, self.site / "packaging")
        for name in (*EXTRAS["[dev]"], "torch", "torchvision", "detectron2"):
            if name not in without:
                stub(self.site, name, VERSIONS.get(name, "99.0"))
        if "d2kd" not in without:
            (self.site / "d2kd.pth").write_text(str(ROOT))

    @property
    def calls(self) -> list[list[str]]:
        file = self.site / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def install(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DETECTRON2")}
        command = [str(self.python), str(ROOT / "tools/install.py"), *(arguments or ["dev"])]
        return subprocess.run(command, env={**environ, **variables}, capture_output=True, text=True, check=False)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def editable(extra: str = "[dev]", torch: str = "99.0", torchvision: str = "99.0") -> list[str]:
    """The arguments that install this clone; a version of None is not pinned."""
    versions = {"torch": torch, "torchvision": torchvision}
    pins = [f"{name}=={version}" for name, version in versions.items() if version]
    return ["--no-build-isolation", *pins, "--editable", f"{ROOT}{extra}"]


def assert_one_sentence(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("extra", ["base", "demo", "dev"])
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_nothing_is_touched_where_nothing_is_missing(environment: Environment, extra: str, check: list[str]) -> None:
    environment.fill()
    result = environment.install(extra, *check)
    assert (result.returncode, result.stderr, environment.calls) == (0, "", [])
    assert len(result.stdout.splitlines()) == 1


def test_from_scratch_and_again(environment: Environment) -> None:
    result = environment.install()
    build, d2kd, detectron2 = environment.calls
    assert (build, d2kd) == (BUILD, editable(torch="", torchvision=""))
    assert detectron2[0] == "--no-build-isolation"
    assert detectron2[-1] == (
        "git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"
    )
    shutil.copytree(Path(packaging.__file__).parent, environment.site / "packaging")  # a stub has no dependencies
    result = environment.install()
    assert (result.returncode, result.stderr, len(environment.calls)) == (0, "", 3)


def test_check_installs_nothing(environment: Environment) -> None:
    environment.fill("fvcore", "detectron2")
    assert_one_sentence(environment.install("dev", "--check"), "fvcore", "detectron2", "cannot be found")
    assert environment.calls == []


@pytest.mark.parametrize("extra, suffix", [("base", ""), ("demo", "[demo]"), ("dev", "[dev]")])
def test_an_extra_brings_its_own_needs(environment: Environment, extra: str, suffix: str) -> None:
    environment.fill("numpy")
    assert environment.install(extra).returncode == 0
    assert environment.calls == [BUILD, editable(suffix)]


def test_needs_of_another_extra_may_be_missing(environment: Environment) -> None:
    environment.fill(*DEV)
    assert environment.install("demo").returncode == 0
    assert environment.calls == []


def test_d2kd_of_another_clone_is_replaced(environment: Environment) -> None:
    environment.fill("d2kd")
    stub(environment.site.parent, "d2kd", "0.1.0")
    (environment.site / "d2kd.pth").write_text(str(environment.site.parent))
    assert environment.install().returncode == 0
    assert environment.calls == [BUILD, editable()]


def test_d2kd_that_shadows_this_clone_is_named(environment: Environment, tmp_path: Path) -> None:
    environment.fill()
    stub(tmp_path, "d2kd", "0.1.0")
    assert_one_sentence(environment.install(PYTHONPATH=str(tmp_path)), str(tmp_path / "d2kd"), "PYTHONPATH")


@pytest.mark.parametrize("name, version", [("setuptools", "65.5.0"), ("iopath", "0.1.10"), ("fvcore", "0.1.4")])
def test_a_version_out_of_bounds_is_replaced(environment: Environment, name: str, version: str) -> None:
    environment.fill(name)
    stub(environment.site, name, version)
    assert environment.install().returncode == 0
    assert environment.calls == [BUILD, editable()]


@pytest.mark.parametrize("missing, pins", [("torchvision", {"torchvision": ""}), ("torch", {"torch": ""})])
def test_half_a_pair_is_pinned(environment: Environment, missing: str, pins: dict[str, str]) -> None:
    environment.fill(missing)
    assert environment.install().returncode == 0
    assert environment.calls == [BUILD, editable(**pins)]


def test_torch_that_pip_does_not_know_is_not_replaced(environment: Environment) -> None:
    environment.fill("torchvision")
    shutil.rmtree(environment.site / "torch-99.0.dist-info")
    assert_one_sentence(environment.install(), "torch is here, but pip has no record of it", "yourself")
    assert environment.calls == []


def test_torch_that_pip_does_not_know_is_no_error_where_nothing_is_missing(environment: Environment) -> None:
    environment.fill()
    shutil.rmtree(environment.site / "torch-99.0.dist-info")
    assert environment.install().returncode == 0


def test_misfit_of_torch_and_torchvision(environment: Environment) -> None:
    environment.fill("torchvision", "fvcore")
    stub(environment.site, "torchvision", "99.0", f"raise RuntimeError({NMS!r})")
    assert_one_sentence(environment.install(), "torch and torchvision cannot be imported together", NMS, "same index")
    assert environment.calls == []


def test_new_torchvision_that_does_not_fit(environment: Environment) -> None:
    environment.fill("torchvision")
    result = environment.install(BODY_torchvision=f"raise RuntimeError({NMS!r})")
    assert_one_sentence(result, "torch and torchvision cannot be imported together", NMS)


def test_torch_that_does_not_import(environment: Environment) -> None:
    environment.fill()
    (environment.site / "torch/__init__.py").write_text("raise ImportError('libcudart')")
    (environment.site / "torchvision/__init__.py").write_text("import torch")
    assert_one_sentence(environment.install(), "torch and torchvision cannot be imported together", "libcudart")


def test_without_detectron2_the_rest_is_installed_and_a_sentence_says_what_to_do(environment: Environment) -> None:
    environment.fill("detectron2", "fvcore", "pytest")
    result = environment.install(FAIL="detectron2.git")
    assert_one_sentence(result, "detectron2", "ERROR: Could not find a version", "pip.log", "DETECTRON2=/path")
    assert environment.calls[:-1] == [BUILD, editable()]
    assert (environment.site / "fvcore").exists() and (environment.site / "pytest").exists()


def test_without_pip(environment: Environment) -> None:
    environment.fill("fvcore")
    shutil.rmtree(environment.site / "pip")
    assert_one_sentence(environment.install(), "No module named pip", "virtual environment")


def test_detectron2_from_a_folder(environment: Environment, tmp_path: Path) -> None:
    environment.fill("detectron2")
    source = tmp_path / "my detectron2"
    source.mkdir()
    assert environment.install(DETECTRON2=str(source)).returncode == 0
    assert environment.calls == [BUILD, ["--no-build-isolation", "torch==99.0", "torchvision==99.0", str(source)]]


@pytest.mark.parametrize("source", ["detectron2 @ git+https://example.com/fork.git", "git+file:///detectron2", " "])
def test_detectron2_from_a_requirement(environment: Environment, source: str) -> None:
    environment.fill("detectron2")
    assert environment.install(DETECTRON2=source).returncode == 0
    (_, arguments) = environment.calls
    assert arguments[-1] == source if source.strip() else arguments[-1].startswith("git+https://github.com/facebook")


@pytest.mark.parametrize(
    "source", ["detectron2", "Detectron2", "detectron2==0.6", "detectron2 >= 0.5", "detectron2[x]"]
)
def test_the_name_detectron2_is_refused(environment: Environment, source: str) -> None:
    environment.fill("detectron2")
    assert_one_sentence(environment.install(DETECTRON2=source), f"DETECTRON2={source}", "stranger's package")
    assert environment.calls == []


def test_detectron2_that_is_another_package(environment: Environment) -> None:
    environment.fill()
    shutil.rmtree(environment.site / "detectron2/modeling")
    assert_one_sentence(environment.install(), "is not Detectron2 or too old", "uninstall it")
    assert environment.calls == []
