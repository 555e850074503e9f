"""Adds what d2kd needs and this Python lacks, and nothing else.

Standard library only, since it runs before anything is there. A torch, torchvision or detectron2 that is
present is never changed: users have their own builds. d2kd itself counts as present only if ``import d2kd``
finds this clone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DETECTRON2 = "git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"
# What builds d2kd and detectron2 without build isolation (detectron2's setup.py imports torch).
BUILD_NEEDS = ("setuptools>=70.1", "wheel", "ninja")
EXTRAS = {"base": ("REQUIRES",), "demo": ("REQUIRES", "DEMO"), "dev": ("REQUIRES", "DEMO", "TIMM", "DEV")}
MODULES = ("torch", "torchvision", "detectron2", "d2kd")

# Runs in a fresh process and away from the clone, so that what it finds is what a user's script would find.
PROBE = """
import importlib.metadata, importlib.util, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
def origin(name):
    spec = importlib.util.find_spec(name)
    return spec and spec.origin
names, modules = json.loads(sys.argv[1])
print(json.dumps([{n: version(n) for n in names}, {m: origin(m) for m in modules}]))
"""


class InstallError(Exception):
    """What stops the installation: one sentence that says what to do."""


@dataclass(frozen=True)
class State:
    """What this Python has: versions by distribution name, files by module name; None where there is none."""

    versions: Mapping[str, str | None]
    origins: Mapping[str, str | None]


@dataclass(frozen=True)
class Step:
    """One call of ``pip install``: what it brings, its arguments, and what to do if it fails."""

    what: str
    arguments: tuple[str, ...]
    advice: str = "check the network and the package index that pip uses, then run this again"


def read_requirements(extra: str, setup_py: Path = ROOT / "setup.py") -> list[str]:
    """The requirements that setup.py lists for ``extra``, read without running it (it needs setuptools)."""
    lists = {}
    for node in ast.parse(setup_py.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            lists[node.targets[0].id] = ast.literal_eval(node.value)
    return [requirement for name in EXTRAS[extra] for requirement in lists[name]]


def name_of(requirement: str) -> str:
    """``"fvcore>=0.1.5,<0.1.6"`` -> ``"fvcore"``."""
    return re.match(r"[A-Za-z0-9._-]+", requirement).group()


def satisfied(requirement: str, version: str | None) -> bool:
    """Whether ``version`` is there and not below the requirement's ``>=``; other bounds only steer pip."""
    if version is None:
        return False
    floor = re.search(r">=\s*([0-9.]+)", requirement)
    if floor is None:
        return True
    release = re.match(r"[0-9.]*", version).group()
    have, need = ([int(part) for part in text.split(".") if part] for text in (release, floor.group(1)))
    length = max(len(have), len(need))
    return have + [0] * (length - len(have)) >= need + [0] * (length - len(need))


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    """Runs this Python in an empty folder and captures what it says."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )


def look(requirements: Sequence[str]) -> State:
    """What of ``requirements``, the build needs and the four modules is present."""
    names = sorted({name_of(r) for r in (*requirements, *BUILD_NEEDS, "torch", "torchvision", "detectron2")})
    result = run_python("-c", PROBE, json.dumps([names, MODULES]))
    if result.returncode != 0:
        raise InstallError(f"{sys.executable} cannot list its packages ({last_line(result.stderr)}): repair it first.")
    versions, origins = json.loads(result.stdout.splitlines()[-1])
    return State(versions, origins)


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no message"


def is_this_clone(origin: str | None) -> bool:
    """Whether ``origin``, the file that ``import d2kd`` would read, is this clone's."""
    return origin is not None and Path(origin).resolve() == (ROOT / "d2kd/__init__.py").resolve()


def detectron2_source(environ: Mapping[str, str]) -> str:
    """What pip is to install as detectron2: ``$DETECTRON2`` (paths made absolute) or the pinned commit."""
    source = environ.get("DETECTRON2", "").strip()
    if not source:
        return DETECTRON2
    path = Path(source).expanduser()
    if path.exists():
        return str(path.resolve())
    if source.startswith(("/", ".", "~")):
        raise InstallError(f"DETECTRON2 names {source}, which does not exist: name a clone of Detectron2.")
    if source.lower() == "detectron2":
        raise InstallError(
            "DETECTRON2=detectron2 would fetch a stranger's package (Detectron2 is on no index): "
            "name a path or a URL, or leave it unset."
        )
    return source


def plan(state: State, requirements: Sequence[str]) -> list[Step]:
    """The pip calls that add what is missing, detectron2 aside."""
    steps = []
    pair = [name for name in ("torch", "torchvision") if state.origins[name] is None]
    if pair:
        # Both are named, so that pip picks the one that fits the other; the one that is present is pinned.
        steps.append(Step(" and ".join(pair), ("torch", "torchvision")))
    wanted = [r for r in requirements if r not in ("torch", "torchvision")]
    needs_d2kd = not is_this_clone(state.origins["d2kd"])
    if needs_d2kd or state.origins["detectron2"] is None:
        wanted += BUILD_NEEDS if state.origins["detectron2"] is None else BUILD_NEEDS[:2]
    wanted = [r for r in dict.fromkeys(wanted) if not satisfied(r, state.versions[name_of(r)])]
    if wanted:
        steps.append(Step(", ".join(wanted), tuple(wanted)))
    if needs_d2kd:
        steps.append(Step("d2kd", ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))))
    return steps


def detectron2_step(environ: Mapping[str, str]) -> Step:
    """The pip call that adds detectron2."""
    source = detectron2_source(environ)
    advice = "get git, a C++ compiler and network access, or name a clone of Detectron2 in DETECTRON2=/path"
    return Step(f"detectron2 from {source}", ("--no-build-isolation", source), advice)


def pins(state: State) -> list[str]:
    """Constraints that keep pip from replacing the torch and torchvision that are present."""
    present = [name for name in ("torch", "torchvision") if state.origins[name] is not None]
    unknown = [name for name in present if state.versions[name] is None]
    if unknown and len(present) < 2:
        raise InstallError(
            f"{unknown[0]} is present, but pip has no record of it and would replace it: "
            f"install the {'torchvision' if unknown == ['torch'] else 'torch'} that fits it yourself."
        )
    return [f"{name}=={state.versions[name]}" for name in present if state.versions[name] is not None]


def is_externally_managed() -> bool:
    """PEP 668: outside virtual environments, a marker file says that only the system may install."""
    in_environment = sys.prefix != sys.base_prefix
    return not in_environment and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()


def require_pip() -> None:
    """Raises InstallError where pip may not or cannot install; adds pip to an environment made without it."""
    if is_externally_managed():
        raise InstallError(
            f"{sys.executable} belongs to the operating system, which manages its packages: make a virtual "
            f"environment (python3 -m venv .venv && . .venv/bin/activate) and run this again."
        )
    if run_python("-m", "pip", "--version").returncode != 0 and run_python("-m", "ensurepip").returncode != 0:
        raise InstallError(f"{sys.executable} has no pip and cannot add it: make an environment with pip.")


def run_pip(step: Step, constraints: Sequence[str]) -> None:
    """Runs one step. pip's progress is shown; its errors go to a file, and the sentence quotes the first."""
    print(f"installing {step.what}", flush=True)
    # detectron2's build looks for ninja on PATH, where an environment that is not activated has no scripts
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("".join(f"{line}\n" for line in constraints), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-c", str(file)]
        result = subprocess.run(
            [*command, *step.arguments],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if result.returncode == 0:
        sys.stderr.write(result.stderr)
        return
    handle, log = tempfile.mkstemp(prefix="d2kd-pip-", suffix=".log", text=True)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(result.stderr)
    # what a subprocess of pip said comes before pip's own word that it failed
    error = re.search(r"^ *((ERROR|error|fatal): (?!subprocess-exited).*)", result.stderr, re.MULTILINE)
    quote = error.group(1) if error else last_line(result.stderr)
    raise InstallError(f"{step.what} could not be installed ({quote}; more in {log}): {step.advice}.")


def check_fit() -> None:
    """Raises InstallError if torch and torchvision are not builds of one another, which shows at import."""
    result = run_python("-c", "import torchvision")
    if result.returncode == 0:
        return
    alone = run_python("-c", "import torch")
    if alone.returncode != 0:
        what, result = "torch cannot be imported", alone
    else:
        what = "torch and torchvision do not fit each other"
    raise InstallError(
        f"{what} ({last_line(result.stderr)}): install a torch and a torchvision of one release and one "
        f"CUDA or CPU build, from the same index."
    )


def check_result(state: State) -> None:
    """Raises InstallError if what is found now is not what was wanted."""
    origin = state.origins["d2kd"]
    if not is_this_clone(origin):
        raise InstallError(f"import d2kd still finds {origin}: remove that from PYTHONPATH or uninstall it.")
    detectron2 = state.origins["detectron2"]
    if detectron2 is None:
        raise InstallError("detectron2 was installed but cannot be imported: check what DETECTRON2 names.")
    if not Path(detectron2).with_name("modeling").joinpath("meta_arch/dense_detector.py").is_file():
        raise InstallError(
            f"{detectron2} is not Detectron2, or too old (no modeling/meta_arch/dense_detector.py): "
            f"uninstall it and run this again."
        )


def install(extra: str, environ: Mapping[str, str]) -> None:
    """Adds what ``extra`` ("base", "demo" or "dev") needs and is missing, or raises InstallError."""
    requirements = read_requirements(extra)
    state = look(requirements)
    had_vision = state.origins["torchvision"] is not None
    if had_vision and state.origins["torch"] is not None:
        check_fit()
    steps = plan(state, requirements)
    needs_detectron2 = state.origins["detectron2"] is None
    if steps or needs_detectron2:
        require_pip()
        constraints = pins(state)
        for step in steps:
            run_pip(step, constraints)
            if "torchvision" in step.arguments:
                check_new_fit(had_vision)
        if needs_detectron2:
            # last: it is what fails most easily, and without it the losses can still be tested
            run_pip(detectron2_step(environ), pins(look(requirements)))
        state = look(requirements)
    check_result(state)
    found = ", ".join(f"{name} {state.versions[name] or '(no version)'}" for name in MODULES[:3])
    print(f"d2kd: all that {extra!r} needs is here ({found})")


def check_new_fit(had_vision: bool) -> None:
    """``check_fit`` after an install; removes a torchvision that does not fit, unless it was there before."""
    try:
        check_fit()
    except InstallError:
        if not had_vision:
            run_python("-m", "pip", "uninstall", "--yes", "torchvision")
        raise


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Environment: DETECTRON2, the path or pip requirement of a missing detectron2,\ndefault {DETECTRON2}",
    )
    parser.add_argument("extra", choices=EXTRAS, help="base: d2kd; demo: + make demo; dev: + tests and lint")
    extra = parser.parse_args(argv).extra
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - python3 may be any
            raise InstallError(f"{sys.executable} is older than Python 3.10: name a newer one, PYTHON=...")
        install(extra, os.environ)
    except InstallError as error:
        print(f"d2kd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
