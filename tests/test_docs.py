"""What the documentation names is there; docs/architecture.md says what is where."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from d2kd.cli import compare
from d2kd.experiments.plan import plan_runs

ROOT = Path(__file__).resolve().parents[1]
DIARIES = sorted((ROOT / "docs/results").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *DIARIES]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
#: Detectron2's own, the names in docs/new_method.md that stand for a method to be added, and wrong ones in
#: docs/bad_inputs.md.
ELSEWHERE = re.compile(r"tools/(lazyconfig|plain)_train_net\.py|.*(NAME|squared_scores|BinaryKD|BinaryClasification).*")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    return request.param


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links(page: Path) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text())
    for file, _, fragment in (link.partition("#") for link in links):
        target = page.parent / file if file else page
        assert target.exists(), file
        if fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), f"{file}#{fragment}"


def test_paths(page: Path) -> None:
    paths = re.findall(r"(?<![\w/.-])(?:d2kd|tools|tests|docs|configs)/[\w/-]*(?:\.\w+)?", page.read_text())
    missing = {path for path in paths if not (ROOT / path).exists() and not ELSEWHERE.fullmatch(path)}
    brackets = {path for path in missing if re.search(re.escape(path) + r"[{*]", page.read_text())}
    assert missing == brackets


def test_names(page: Path) -> None:
    """Every dotted name of d2kd can be imported."""
    for name in set(re.findall(r"(?<![\w/])d2kd(?:\.[A-Za-z_]\w*)+", page.read_text())):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            assert ELSEWHERE.fullmatch(name), name


def test_the_table_names_every_package() -> None:
    named = re.findall(r"^\| `(d2kd/\S+)` \|", ARCHITECTURE, flags=re.MULTILINE)
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "d2kd").glob("*/**/__init__.py")}
    assert set(named) == packages
    assert len(named) == len(packages)


def test_a_batch_has_ten_steps() -> None:
    assert re.findall(r"^(\d+)\. ", ARCHITECTURE, flags=re.MULTILINE) == [str(i) for i in range(1, 11)]


@pytest.mark.parametrize("name, file", re.findall(r"\[`([\w.]+)`\]\(([^)#]+)\)", ARCHITECTURE))
def test_links_lead_to_the_function(name: str, file: str) -> None:
    source = (ROOT / "docs" / file).read_text()
    for part in name.split("."):
        assert re.search(rf"^\s*(def|class) {part}\b", source, flags=re.MULTILINE)


def test_the_picture_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package has a place, every arrow leads down and meets no third box; the page's picture is of that size."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs/draw_architecture.py")
    draw_architecture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_architecture)
    monkeypatch.setattr(draw_architecture, "OUTPUT", tmp_path / "architecture.png")
    monkeypatch.chdir(ROOT)
    draw_architecture.main()
    with Image.open(tmp_path / "architecture.png") as new, Image.open(ROOT / "docs/pictures/architecture.png") as old:
        assert new.size == old.size == (1000, 1040)


def measured() -> set[tuple[str, str, str]]:
    """Seeds, AP and training CPU seconds of every kind of run in docs/results/*/results.json, as a table's cells."""
    cells = set()
    for file in (ROOT / "docs/results").glob("*/results.json"):
        kinds: dict[str, list[tuple[float, float]]] = {}
        for run in json.loads(file.read_text())["runs"]:
            ap = run["AP"] if "AP" in run else run["values"]["bbox/AP"]  # before and since compare reports any metric
            cost = run["cpu_seconds"] if "cpu_seconds" in run else run["cost_seconds"]
            if cost is not None:  # of a teacher that was trained elsewhere
                kinds.setdefault(run["method"], []).append((ap, cost))
        for runs in kinds.values():
            aps, costs = zip(*runs)
            cells.add((str(len(runs)), cell(aps, 1), cell(costs, 0)))
    return cells


def cell(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


@pytest.mark.parametrize("diary", ["aquarium", "cards", "digits"])
def test_rows_of_diaries_are_measured(diary: str) -> None:
    text = (ROOT / f"docs/results/{diary}.md").read_text()
    tables = re.findall(r"^\| model \| seeds \| iterations \| AP \|.*\n.*\n((?:\|.*\n)*)", text, flags=re.MULTILINE)
    rows = [row.strip("| ").split(" | ") for table in tables for row in table.splitlines()]
    assert rows
    assert {(row[1], row[3], row[-1]) for row in rows} - measured() == set()


@pytest.mark.parametrize("answer", ["README.md", "docs/results.md", "docs/which_method.md"])
def test_figures_of_answers_are_those_of_a_diary(answer: str) -> None:
    diaries = "".join(page.read_text() for page in DIARIES)
    figures = re.findall(r"[\d.]+ ± [\d.]*\d", (ROOT / answer).read_text())
    assert figures
    assert [figure for figure in figures if figure not in diaries] == []


@pytest.mark.parametrize("diary", ["aquarium", "cards", "digits"])
def test_commands_of_diaries_are_those_of_today(diary: str) -> None:
    text = (ROOT / f"docs/results/{diary}.md").read_text()
    assert "tools/compare.py" not in text
    commands = re.findall(r"^    d2kd compare (.*)$", text, flags=re.MULTILINE)
    assert commands
    for command in commands:
        args = compare.parse_args(shlex.split(command.replace("--max-iter N ", "--max-iter 4000 ")))
        runs = plan_runs(compare.experiment_of(args))
        assert len(runs) == len(args.methods) * len(args.seeds), command
