"""The workflows and templates under .github, and what a release is made of."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = """\
# Changelog

## [Unreleased]

- Later.

## [0.1.0] - 2026-12-01

### Added

- First.

## [0.1.0rc1]

- Earlier.
"""


def read(path: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / path).read_text())


@pytest.mark.parametrize("path", sorted(map(str, (ROOT / ".github").rglob("*.yml"))))
def test_every_file_is_yaml(path: str) -> None:
    assert isinstance(yaml.safe_load(Path(path).read_text()), dict)


def test_bugs_are_reported_with_check_and_versions() -> None:
    text = str(read("ISSUE_TEMPLATE/bug.yml"))
    assert "d2kd check" in text and "--json" in text and "d2kd --version" in text


def test_ci_runs_every_python_that_is_named() -> None:
    named = re.findall(r"Python :: (3\.\d+)\"", (ROOT / "setup.py").read_text())
    jobs = read("workflows/ci.yml")["jobs"]
    oldest = [step["with"]["python-version"] for step in jobs["oldest"]["steps"] if "with" in step]
    assert oldest + jobs["test"]["strategy"]["matrix"]["python"] == named


def release_notes(folder: Path, tag: str) -> subprocess.CompletedProcess:
    """Run the release's step that takes a version's section out of the changelog; it writes notes.md."""
    (folder / "CHANGELOG.md").write_text(CHANGELOG)
    (step,) = [step for step in read("workflows/release.yml")["jobs"]["build"]["steps"] if step.get("name") == "notes"]
    env = {**os.environ, "GITHUB_REF_NAME": tag}
    return subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=env, check=False)


def test_release_notes_are_the_section_of_the_version(tmp_path: Path) -> None:
    assert release_notes(tmp_path, "v0.1.0").returncode == 0
    assert (tmp_path / "notes.md").read_text().strip() == "### Added\n\n- First."


def test_no_release_without_a_section(tmp_path: Path) -> None:
    assert release_notes(tmp_path, "v0.2.0").returncode != 0


def test_the_citation_has_the_five_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    methods = [reference["notes"].partition(";")[0] for reference in citation["references"]]
    assert methods == ["bckd", "ld", "crosskd", "ftpd", "tid"]
