"""docs/architecture.md says what is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_table_names_every_package() -> None:
    named = re.findall(r"^\| `(d2kd/\S+)` \|", PAGE, flags=re.MULTILINE)
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "d2kd").glob("*/**/__init__.py")}
    assert set(named) == packages
    assert len(named) == len(packages)


def test_a_batch_has_ten_steps() -> None:
    assert re.findall(r"^(\d+)\. ", PAGE, flags=re.MULTILINE) == [str(i) for i in range(1, 11)]


@pytest.mark.parametrize("name, file", re.findall(r"\[`([\w.]+)`\]\(([^)#]+)\)", PAGE))
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
