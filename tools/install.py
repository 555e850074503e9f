"""
Adds what d2kd needs and this Python lacks: ``pip install -e .[EXTRA]``, then Detectron2, which is on no package index.

Standard library only, since it runs before anything is there. A torch, torchvision or detectron2 that is present is
never changed: users have their own builds. What cannot be had ends in one sentence that says what to do.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

try:
    from packaging.requirements import Requirement
except ImportError:  # matplotlib, which d2kd needs, brings it
    Requirement = None

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "output/pip.log"
DETECTRON2 = "git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"
# These build d2kd and detectron2, whose setup.py imports torch: without build isolation.
BUILD_NEEDS = ("setuptools>=70.1", "wheel", "ninja")
EXTRAS = {
    "base": ("REQUIRES",),
    "demo": ("REQUIRES", "DEMO"),
    "dev": ("REQUIRES", "DEMO", "TIMM", "MLFLOW", "WANDB", "DEV"),
}


def stop(sentence: str) -> NoReturn:
    sys.exit(f"d2kd: {sentence}.")


def read_requirements(extra: str) -> list[str]:
    """What setup.py lists for ``extra``, read without running it (it needs setuptools)."""
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    return [requirement for name in EXTRAS[extra] for requirement in lists[name]]


def origin(module: str) -> str | None:
    """The file that ``import module`` would read."""
    spec = importlib.util.find_spec(module)
    return spec.origin if spec else None


def version(name: str) -> str | None:
    """What pip has on record."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def satisfied(text: str) -> bool:
    """Whether the requirement is here; of the packages that users build themselves, any version will do."""
    if text in ("torch", "torchvision", "detectron2"):
        return origin(text) is not None
    if text == "d2kd":
        return Path(origin(text) or "").resolve() == ROOT / "d2kd/__init__.py"
    if Requirement is None:
        return False
    requirement = Requirement(text)
    found = version(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def pins() -> list[str]:
    """Requirements that keep pip from replacing the torch and torchvision that are here."""
    present = [name for name in ("torch", "torchvision") if origin(name)]
    for name in present:
        if version(name) is None:
            stop(f"{name} is here, but pip has no record of it and would replace it: install what is missing yourself")
    return [f"{name}=={version(name)}" for name in present]


def detectron2_source(source: str) -> str:
    """What pip is to install as detectron2: the value of ``$DETECTRON2``, or the pinned commit where it is empty."""
    source = source.strip() or DETECTRON2
    if os.path.exists(source):
        return os.path.abspath(source)
    if re.match(r"detectron2(?![\w.-])", source, re.IGNORECASE) and "@" not in source:
        stop(
            f"DETECTRON2={source} would fetch a stranger's package, since Detectron2 is on no index: name a path or a "
            "URL, or leave it unset"
        )
    return source


def pip_install(what: str, *arguments: str, advice: str) -> None:
    """Runs pip; where it fails, stops with a sentence that quotes its first error."""
    print(f"installing {what}", flush=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--log", str(LOG), "install", *arguments]
    # detectron2's build looks for ninja on PATH, where an environment that is not activated has no scripts
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    result = subprocess.run(command, env={**os.environ, "PATH": path}, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        # what a subprocess of pip said comes before pip's own word that it failed
        error = re.search(r"^ *((ERROR|error|fatal): (?!subprocess-exited).*)", result.stderr, re.MULTILINE)
        quote = error.group(1) if error else result.stderr.strip().rpartition("\n")[2]
        stop(f"{what} could not be installed ({quote}; more in {LOG}): {advice}")


def install(extra: str, missing: list[str]) -> None:
    """Adds what is missing; detectron2 last, since it fails most easily, and the losses can be tested without it."""
    source = detectron2_source(os.environ.get("DETECTRON2", ""))
    keep, advice = pins(), "check the network and the index that pip uses, or take a virtual environment"
    pip_install("what builds packages", *BUILD_NEEDS, advice=advice)
    if missing != ["detectron2"]:
        here = str(ROOT) if extra == "base" else f"{ROOT}[{extra}]"
        pip_install(f"d2kd for {extra}", "--no-build-isolation", *keep, "--editable", here, advice=advice)
    if "detectron2" in missing:
        advice = "it needs git, a C++ compiler and the network; or name a clone of it in DETECTRON2=/path"
        pip_install(f"detectron2 from {source}", "--no-build-isolation", *keep, source, advice=advice)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=f"$DETECTRON2 is where it comes from ({DETECTRON2})")
    parser.add_argument("extra", choices=EXTRAS, help="base: d2kd; demo: + make demo; dev: + tests and lint")
    parser.add_argument("--check", action="store_true", help="install nothing")
    args = parser.parse_args()
    missing = [text for text in (*read_requirements(args.extra), "d2kd", "detectron2") if not satisfied(text)]
    if not {"torch", "torchvision"} & set(missing):
        try:
            importlib.import_module("torchvision")  # fails where the two are not builds of one another
        except Exception as error:
            stop(
                f"torch and torchvision cannot be imported together ({error}): install both of one release and one "
                "build, CUDA or CPU, from the same index"
            )
    if missing and not args.check:
        install(args.extra, missing)
        os.execv(sys.executable, [sys.executable, __file__, args.extra, "--check"])  # it sees what is new
    if missing == ["d2kd"]:
        stop(f"import d2kd finds {origin('d2kd')}: remove that from PYTHONPATH or uninstall it")
    if missing:
        stop(f"{', '.join(missing)} cannot be found; if pip installed it, check PYTHONPATH and what DETECTRON2 names")
    if not Path(origin("detectron2")).with_name("modeling").joinpath("meta_arch/dense_detector.py").is_file():
        stop(
            f"import detectron2 finds {origin('detectron2')}, which is not Detectron2 or too old (it has no "
            "modeling/meta_arch/dense_detector.py): uninstall it and run this again"
        )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "detectron2"))
    print(f"d2kd: all that {args.extra!r} needs is here ({versions})")


if __name__ == "__main__":
    main()
