"""Each bad input gets its sentence, and the page has them all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.utils.cpp_extension  # logs at its first import that there is no GPU
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from d2kd.__main__ import main
from tests.bad_inputs.case import AREAS, BadInput, all_cases
from tests.bad_inputs.page import page

PAGE = Path(__file__).parents[2] / "docs/bad_inputs.md"
CASES = all_cases()
#: What a run that begins writes before its first step, and what a step that is not finite leaves.
LEFT = ("log.txt*", "config.yaml*", "run.lock", "metrics.json", "events.out.tfevents.*", "non_finite_iter*.pth")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, on a machine without a GPU. Datasets and environment are restored."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for further processes
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    # Other tests' modules may have been imported before.
    own = {name: builder for name, builder in META_ARCH_REGISTRY if not builder.__module__.startswith("tests")}
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", own)
    catalogs = [(catalog, set(catalog.list())) for catalog in (DatasetCatalog, MetadataCatalog)]
    with mock.patch.dict(os.environ):
        yield tmp_path / "work"
    for catalog, names in catalogs:
        for name in set(catalog.list()) - names:
            catalog.remove(name)


def files(folder: Path) -> dict[str, str]:
    """Path -> checksum of each file below ``folder``."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.area}: {case.given}") for case in CASES])
def test_a_bad_input(case: BadInput, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = case.arguments(folder)
    before = files(folder)
    capsys.readouterr()
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # argparse's
        status = stop.code
    assert capsys.readouterr().err == case.says.replace("{folder}", str(folder)) + "\n"
    assert status == 2
    after = files(folder)
    changed = [path for path in before if after.get(path) != before[path]]
    assert not [path for path in changed if not Path(path).match("log.txt*")]  # of a run that is resumed
    unexpected = [path for path in after.keys() - before.keys() if not any(Path(path).match(name) for name in LEFT)]
    assert not unexpected


def test_each_case_is_one() -> None:
    assert len({(case.area, case.given) for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.area in AREAS
        assert case.says.startswith("d2kd") and "\n" not in case.says, case.given


def test_the_page_is_what_the_cases_say() -> None:
    assert PAGE.read_text() == page(CASES), "run: python3 -m tests.bad_inputs > docs/bad_inputs.md"
