"""What a wheel holds, what the package imports, and what the Makefile runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

import d2kd
from tests.own_project import write_project

ROOT = Path(__file__).resolve().parents[1]
# Variables of an outer `make` or of a user that would reach the processes under test.
OUTER = ("PYTHONPATH", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "DETECTRON2")

BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
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
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone has of the package."""
    source = tmp_path_factory.mktemp("clone")
    for name in ("d2kd", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    (source / "tests").mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "tests/test_packaging.py"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    arguments = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(clone)]
    result = run(sys.executable, "-m", "pip", "wheel", *arguments, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"d2kd-{d2kd.__version__}-py3-none-any.whl"
    return wheel


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_module_and_every_config_and_no_other_package(site: Path) -> None:
    assert (site / "d2kd/py.typed").is_file()
    for folder, packaged in (("d2kd", site / "d2kd"), ("configs", site / "d2kd/configs")):
        expected = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
        assert expected, folder
        assert {path for path in expected if not (packaged / path).is_file()} == set()
    tops = {path.name for path in site.iterdir()}
    assert tops == {"d2kd", f"d2kd-{d2kd.__version__}.dist-info"}


def test_a_source_archive_holds_what_the_wheel_does(clone: Path, site: Path, tmp_path: Path) -> None:
    result = run(sys.executable, "-c", BUILD_SDIST, str(tmp_path), cwd=clone)
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / f"d2kd-{d2kd.__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    packaged = {str(path.relative_to(site)) for path in (site / "d2kd").rglob("*") if path.is_file()}
    assert packaged | {"setup.py", "LICENSE", "README.md"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_wheel_metadata(site: Path) -> None:
    lines = (site / f"d2kd-{d2kd.__version__}.dist-info/METADATA").read_text().splitlines()
    assert "Requires-Python: >=3.10" in lines
    assert any(line.endswith(": Apache-2.0") for line in lines)
    assert "Classifier: License :: OSI Approved :: Apache Software License" in lines
    assert "Description-Content-Type: text/markdown" in lines
    assert (ROOT / "README.md").read_text().strip() in "\n".join(lines)
    required = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")]
    assert {"torch>=2.6", "torchvision"} <= set(required)
    assert not [line for line in required if line.startswith("detectron2")]
    assert {"Provides-Extra: demo", "Provides-Extra: timm", "Provides-Extra: dev"} <= set(lines)


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it; what the wheel needs comes from the Python that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, system_site_packages=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # The system's packages are not those of this Python if it is itself that of an environment.
    (packages / "outer.pth").write_text(f"{Path(detectron2.__file__).parents[1]}\n")
    arguments = ["install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    result = run(sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), *arguments, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def d2kd_command(environment: Path, folder: Path, *arguments: str) -> str:
    """What the installed ``d2kd`` prints in ``folder``."""
    env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DETECTRON2_DATASETS": str(folder / "datasets")}
    env["TINY_DATASET"] = "data"
    result = run(str(environment / "bin/d2kd"), *arguments, cwd=folder, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write_coco(folder: Path) -> str:
    """Six random images with an object each where Detectron2 looks for a COCO split; returns the split's name."""
    name, rng = "coco_2017_val_100", np.random.default_rng(0)
    for sub in ("annotations", "val2017"):
        (folder / "datasets/coco" / sub).mkdir(parents=True)
    categories = [{"id": i["id"], "name": i["name"]} for i in COCO_CATEGORIES if i["isthing"]]
    images, annotations = [], []
    for i in range(1, 7):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            folder / f"datasets/coco/val2017/{i}.jpg"
        )
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64})
        target = {"bbox": [8, 8, 20 + i, 24], "area": (20 + i) * 24, "category_id": 1 + i % 5, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, **target})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "datasets/coco/annotations/instances_val2017_100.json").write_text(json.dumps(content))
    return name


def test_an_installed_wheel_is_imported_outside_the_clone(environment: Path, tmp_path: Path) -> None:
    code = "import d2kd; print(d2kd.__file__); print(sorted(d2kd.get_config('common/train.py')))"
    result = run(str(environment / "bin/python"), "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    file, names = result.stdout.splitlines()[-2:]
    assert Path(file).is_relative_to(environment) and Path(file).parts[-3:] == ("site-packages", "d2kd", "__init__.py")
    assert "'train'" in names


def test_an_installed_wheel_has_the_command(environment: Path, tmp_path: Path) -> None:
    assert "\n  check-adapter  " in d2kd_command(environment, tmp_path, "--help")
    assert d2kd_command(environment, tmp_path, "methods", "bckd").startswith("bckd\n  paper")


def test_an_installed_wheel_trains_a_packaged_config_and_exports_the_student(environment: Path, tmp_path: Path) -> None:
    name, config = write_coco(tmp_path), "digits/fcos_small_baseline.py"
    datasets = [f"dataloader.{split}.dataset" for split in ("train", "test")]
    classes = "model.student.num_classes=80"
    d2kd_command(
        *(environment, tmp_path, "train", "--config-file", config, "train.max_iter=2", "train.output_dir=run"),
        *(f"{dataset}._target_=detectron2.data.get_detection_dataset_dicts" for dataset in datasets),
        *(f"{dataset}.names={name}" for dataset in datasets),
        classes,
    )
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert "bbox/AP" in rows[-1]
    d2kd_command(environment, tmp_path, "export", config, "run/model_final.pth", "--output", "student.pth", classes)
    model = d2kd.get_config("common/models/digits_fcos_small.py").model
    model.num_classes = 80
    detector = instantiate(model)
    incompatible = detector.load_state_dict(torch.load(tmp_path / "student.pth")["model"])
    assert not incompatible.missing_keys and not incompatible.unexpected_keys


def test_an_installed_wheel_runs_a_short_demo(environment: Path, tmp_path: Path) -> None:
    printed = d2kd_command(environment, tmp_path, "demo", "--max-iter", "20")
    assert "nothing about quality" in printed
    output = tmp_path / "output/demo_20"
    runs = {run["method"]: run for run in json.loads((output / "results.json").read_text())["runs"]}
    assert len(runs) == 4
    assert [runs[method]["max_iter"] for method in ("teacher", "alone", "config")] == [20, 20, 20]
    assert (output / "curves.png").is_file() and (output / "sheet.png").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]  # no data where a whole demo looks for them
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["demo_20"]


def test_an_installed_wheel_compares_methods_on_a_config_of_ones_own(environment: Path, tmp_path: Path) -> None:
    write_project(tmp_path)
    argv = ["--config-file", "mine.py", "--seeds", "0", "--max-iter", "2", "--processes", "2"]
    printed = d2kd_command(environment, tmp_path, "compare", *argv)
    results = json.loads((tmp_path / "output/compare/results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["teacher", "alone", "config"]
    assert "training CPU s" in printed and (tmp_path / "output/compare/curves.png").is_file()


@pytest.mark.parametrize("module", ["d2kd.structures", "d2kd.losses", "d2kd.regions"])
def test_losses_and_regions_need_torch_and_fvcore_only(module: str) -> None:
    result = run(sys.executable, "-c", f"{BLOCK}import {module}", cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_block_of_the_test_above_blocks() -> None:
    result = run(sys.executable, "-c", f"{BLOCK}import detectron2.config", cwd=ROOT)
    assert "detectron2 is blocked" in result.stderr


@pytest.mark.parametrize(
    "python, torch_version, sentence",
    [
        ("(3, 13, 0)", "2.6.0a0+git1", None),
        ("(3, 10, 0)", "2.14.1", None),
        ("(3, 13, 0)", "2.5.1+cu124", "d2kd needs torch 2.6 or later, and 2.5.1+cu124 is installed."),
        ("(3, 9, 18)", "2.6.0", "d2kd needs Python 3.10 or later, and this is"),
    ],
)
def test_what_is_too_old_is_said_at_import(
    tmp_path: Path, python: str, torch_version: str, sentence: str | None
) -> None:
    """Torch is not imported for it."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise RuntimeError('torch is imported')")
    (tmp_path / "torch/version.py").write_text(f"__version__: str = '{torch_version}'\ncuda = None\n")
    code = f"import sys; sys.version_info = {python}; sys.path.insert(0, {str(tmp_path)!r}); import d2kd"
    result = run(sys.executable, "-c", code, cwd=ROOT)
    if sentence is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.stderr.splitlines()[-1].startswith(f"ImportError: {sentence}")


def test_import_of_d2kd_imports_no_torch() -> None:
    result = run(sys.executable, "-c", "import sys, d2kd; sys.exit('torch' in sys.modules)", cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_the_oldest_versions_are_the_same_everywhere() -> None:
    """d2kd/__init__.py says them at import, setup.py to pip, pyproject.toml to ruff and mypy, CI runs them."""
    for name, said in {
        "d2kd/__init__.py": ["< (3, 10)", "< (2, 6)"],
        "setup.py": ['python_requires=">=3.10"', "Python :: 3.10", '"torch>=2.6"'],
        "pyproject.toml": ['target-version = "py310"', 'python_version = "3.10"'],
        ".github/workflows/ci.yml": ['python-version: "3.10"', "torch==2.6.0"],
        "docs/compatibility.md": ["Python 3.10 and torch 2.6 or later"],
    }.items():
        text = (ROOT / name).read_text()
        assert [words for words in said if words not in text] == [], name


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
REST = "-m pytest -q -n auto --dist loadfile tests --ignore=tests/losses --ignore=tests/regions"


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


def test_make_docs_is_strict(tmp_path: Path) -> None:
    assert make(tmp_path, "docs")[1][1:] == ["-m mkdocs build --strict --quiet"]
    result, calls = make(tmp_path, "docs", "import material")
    assert result.returncode != 0 and len(calls) == 3
    assert "pip install -e .[docs]" in result.stderr


def test_make_help_names_every_target(tmp_path: Path) -> None:
    result, _ = make(tmp_path, "help")
    assert [line.split()[1] for line in result.stdout.splitlines()] == [
        "help",
        "install",
        "demo",
        "test",
        "lint",
        "docs",
    ]
