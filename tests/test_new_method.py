"""The method that docs/new_method.md adds: its code is taken from the page and run."""

import doctest
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import d2kd.losses
import d2kd.methods
from d2kd.losses import LOSS_REGISTRY
from tests.helpers import FAMILIES, build_detector, distilled, gradients, make_batch, preset, reached, run_step

PAGE = Path(__file__).parents[1] / "docs/new_method.md"


def module(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(code, str(PAGE), "exec"), made.__dict__)
    return made


@pytest.fixture
def loss(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's edits, undone after the test."""
    loss_code, preset_code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.setattr(LOSS_REGISTRY, "_obj_map", dict(LOSS_REGISTRY))
    made = module("d2kd.losses.squared_scores", loss_code, monkeypatch)
    for name in made.__all__:
        monkeypatch.setattr(d2kd.losses, name, getattr(made, name), raising=False)
    method = module("d2kd.methods.squared_scores", preset_code, monkeypatch).SQUARED_SCORES
    monkeypatch.setitem(d2kd.methods.METHODS, "squared_scores", method)
    return made


def test_its_example(loss):
    found = doctest.testmod(loss)
    assert found.attempted > 0 and found.failed == 0


def test_its_formula(loss):
    student, teacher = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3).double()
    expected = [sum((x.sigmoid() - y.sigmoid()) ** 2 for x, y in zip(*rows)) for rows in zip(student, teacher)]
    torch.testing.assert_close(loss.squared_scores_kd(student, teacher), torch.stack(expected))
    assert torch.autograd.gradcheck(lambda x: loss.squared_scores_kd(x, teacher, temperature=2.0), (student,))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step(loss, family):
    model = distilled(build_detector(family), build_detector(family, seed=1), preset("squared_scores", family))
    found = run_step(model, make_batch())
    assert found["loss_kd_squared_scores_cls"] > 0
    assert any(name.startswith("backbone") for name in reached(gradients(model, found["loss_kd_squared_scores_cls"])))
    assert "temperature=1.0" in repr(model)


def test_it_is_listed(loss):
    assert "docs/new_method.md" in d2kd.methods.list_methods()["squared_scores"].paper
