"""The site of the documentation: what its hooks make of pages that are also read on the repository's page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import markdown
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIST = """\
1. One:
   ```
   - no item
   ```
2. Two.

   A paragraph of two.
3. Three.

Text.

    code
"""


def test_lists_of_github_are_lists_of_the_site(hooks: ModuleType) -> None:
    html = markdown.markdown("\n".join(hooks.indented(LIST.splitlines())), extensions=["pymdownx.superfences"])
    assert html.count("<ol>") == 1 and html.count("<ul>") == 0
    assert html.count("<li>") == 3
    assert "<code>- no item\n</code>" in html and "<code>code\n</code>" in html


@pytest.mark.parametrize(
    "page, link, target",
    [
        ("index.md", "docs/methods.md", "methods.md"),
        ("index.md", "CONTRIBUTING.md", "CONTRIBUTING.md"),
        ("methods.md", "../README.md", "index.md"),
        ("results/digits.md", "demo/results.json", "results/demo/results.json"),
        ("architecture.md", "../d2kd/losses/base.py", "source/d2kd/losses/base.py.md"),
    ],
)
def test_links(hooks: ModuleType, page: str, link: str, target: str) -> None:
    assert hooks.site_uri(hooks.in_repository(page, link)) == target


def test_functions_named_as_their_module_have_an_entry(hooks: ModuleType) -> None:
    assert "::: d2kd.losses.temperature_kl.temperature_kl\n" in hooks.api_page("d2kd.losses")
    assert hooks.api_page("d2kd.regions").count(":::") == 1
