"""
What ``mkdocs build`` does beside its plugins, so that the pages read the same on the repository's page and on the site.

README.md is the site's first page. Links to files outside docs/ lead to a page that shows the file. The pages under
api/ are made here, one for each line of the navigation in mkdocs.yml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Pages outside docs/, and where they are on the site.
ROOT_PAGES = {"README.md": "index.md"} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
#: [text](target#anchor) of a file of the repository, where the text may be an image.
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "bash"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page in re.findall(r"api/[\w.]+\.md", str(config.nav)):
        files.append(File.generated(config, page, content=api_page(PurePosixPath(page).stem)))
    pages = [file for file in files.documentation_pages() if not file.src_uri.startswith("api/")]
    linked = {in_repository(page.src_uri, path) for page in pages for path, _ in LINK.findall(page.content_string)}
    for target in sorted(linked):
        if site_uri(target) != f"source/{target}.md" or not (ROOT / target).is_file():
            continue
        text = (ROOT / target).read_text(encoding="utf-8")
        language = LANGUAGES.get(PurePosixPath(target).suffix, "text")
        content = f"# {target}\n\n~~~~{language}\n{text}~~~~\n"
        files.append(File.generated(config, f"source/{target}.md", content=content))
    return files


def api_page(package: str) -> str:
    """The package's public names. One that has the name of its module is hidden by it, and so stands by itself."""
    init = ROOT.joinpath(*package.split("."), "__init__.py")
    names = re.findall(r'"(\w+)"', re.search(r"__all__ = \[(.*?)\]", init.read_text(), re.DOTALL)[1])
    hidden = [name for name in names if init.with_name(f"{name}.py").exists()]
    functions = "".join(
        f"::: {package}.{name}.{name}\n    options: {{show_root_heading: true, show_root_toc_entry: true}}\n\n"
        for name in hidden
    )
    return f"# {package}\n\n::: {package}\n\n{functions}"


def in_repository(page: str, path: str) -> str:
    """The repository's path of what ``path`` means in a page of the site."""
    source = {uri: name for name, uri in ROOT_PAGES.items()}.get(page, f"docs/{page}")
    return os.path.normpath(PurePosixPath(source).parent / path)


def site_uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    if uri.startswith(("api/", "source/")):
        return markdown

    def to_site(link: re.Match[str]) -> str:
        target = site_uri(in_repository(uri, link[1]))
        return f"]({os.path.relpath(target, PurePosixPath(uri).parent)}{link[2] or ''})"

    return LINK.sub(to_site, "\n".join(indented(markdown.splitlines())))


def indented(lines: list[str]) -> Iterator[str]:
    """
    Lists of GitHub as Python-Markdown reads them: what belongs to an item is indented by four, not by the width of its
    marker, and an empty line ends an item of several paragraphs.
    """
    shift, code, paragraphs, before = 0, False, False, ""
    for line in lines:
        marker = None if code else re.match(r"(\d+\.|[-*]) +", line)
        if line.startswith("```"):
            code = not code
        elif marker:
            if shift and paragraphs and before:
                yield ""
            shift, paragraphs = 4 - len(marker[0]), False
        elif line and not line.startswith(" "):
            shift = 0
        elif not line:
            paragraphs = True
        yield " " * shift + line if line.startswith(" ") and not code else line
        before = line


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings are reStructuredText where Markdown has no word: roles, and the two colons before code."""
    if not page.file.src_uri.startswith("api/"):
        return html
    return re.sub(r"::</p>", ":</p>", re.sub(r":(?:func|class|meth|mod|attr|data):<code>~?", "<code>", html))
