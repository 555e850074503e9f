"""The adapter that docs/own_detector.md writes for a head that d2kd does not know."""

import sys
from types import ModuleType

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

import d2kd
from d2kd.methods import get_losses
from d2kd.modeling import ADAPTER_REGISTRY, get_adapter
from tests.foreign.projects import code_blocks
from tests.foreign.trunk import TrunkDetector, build_trunk_detector
from tests.helpers import build_detector, distilled, gradients, make_batch, preset, reached, run_step

(CODE,) = [block for block in code_blocks("python", "own_detector.md") if "class TrunkAdapter" in block]


@pytest.fixture
def registered(monkeypatch):
    """The block of the page, run; the registry is as before after the test."""
    monkeypatch.setattr(ADAPTER_REGISTRY, "_obj_map", dict(ADAPTER_REGISTRY))
    project = ModuleType("my_project")
    project.TrunkDetector = TrunkDetector
    monkeypatch.setitem(sys.modules, "my_project", project)
    exec(compile(CODE, "docs/own_detector.md", "exec"), {"__name__": "adapter_of_the_page"})


def build(seed, **kwargs):
    torch.manual_seed(seed)
    return build_trunk_detector(**kwargs)


def test_it_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 40


def test_without_it_the_detector_is_refused():
    with pytest.raises(TypeError, match="no adapter for tests.foreign.trunk.TrunkDetector; .*ADAPTER_REGISTRY"):
        d2kd.check_adapter(build_trunk_detector())


def test_the_registry_is_as_before():
    assert "TrunkAdapter" not in ADAPTER_REGISTRY


def test_the_self_check(registered):
    report = d2kd.check_adapter(build(0, depth=3))
    assert (report.adapter, report.spec.family, report.max_tail) == ("TrunkAdapter", "TrunkDetector", 3)


def test_the_self_check_notices_an_error_in_it(registered, monkeypatch):
    adapter = type(get_adapter(build(0)))
    predict = adapter.predict
    monkeypatch.setattr(adapter, "predict", lambda self, head, level, towers: predict(self, head, level, towers)[::-1])
    with pytest.raises(ValueError, match=r"for TrunkDetector whose predict\(\)"):
        d2kd.check_adapter(build(0))


@pytest.mark.parametrize("method", ["crosskd", "bckd", "pkd"])
def test_a_step(registered, method):
    """Alone and as its own teacher's student: the detection losses are the same, distillation trains the student."""
    batch = make_batch()
    expected = run_step(build(0), batch)
    model = distilled(build(0), build(1), {k: instantiate(v) for k, v in get_losses(method, "FCOS").items()})
    found = run_step(model, batch)
    assert {"loss_what", "loss_where"} == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    names = [name for name in found if name.startswith("loss_kd_")]
    assert names and all(found[name].item() > 0 for name in names)
    assert any(name.startswith("backbone") for name in reached(gradients(model, found[names[0]])))


@pytest.mark.parametrize("known", ["RetinaNet", "FCOS"])
def test_crossed_with_a_family_that_d2kd_knows(registered, known):
    for pair in ((build(0), build_detector(known)), (build_detector(known), build(1))):
        found = run_step(distilled(*pair, preset("crosskd", "FCOS", tail=1)), make_batch())
        assert all(found[f"loss_kd_{name}"].isfinite() for name in ("crosskd_cls", "crosskd_loc"))
        assert found["loss_kd_crosskd_cls"] > 0


def test_in_a_config(registered, tmp_path):
    """As the page says: by the name of a method, of the preset that the adapter names, or by borrowing one."""
    torch.save({"model": build(1, width=8).state_dict()}, tmp_path / "teacher.pth")
    pair = dict(teacher=L(build_trunk_detector)(width=8), teacher_checkpoint=str(tmp_path / "teacher.pth"))
    node = d2kd.distill(L(build_trunk_detector)(), losses=get_losses("crosskd", "FCOS"), **pair)
    assert run_step(instantiate(node), make_batch())["loss_kd_crosskd_cls"] > 0
    by_name = d2kd.distill(L(TrunkDetector)(), method="crosskd", **pair)
    assert by_name.losses == node.losses
