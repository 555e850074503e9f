"""What MODEL.META_ARCHITECTURE may be: each refusal is told apart from the others, and names the page that helps."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import nn

from d2kd.config.registered import build_registered
from tests.test_docs import anchor
from tests.yacs_projects import plain

ROOT = Path(__file__).parents[2]


class Plain(nn.Module):
    def __init__(self, cfg):
        super().__init__()


class WithoutAdapter(DenseDetector):
    def __init__(self, cfg):
        super().__init__(nn.Identity(), nn.Identity(), [], pixel_mean=[1.0], pixel_std=[1.0])


class LazyOnly(FCOS):
    """Registered as it is: Detectron2's FCOS takes no config."""


class Own(RetinaNet):
    """With its own constructor, as projects write it."""

    def __init__(self, cfg):
        super().__init__(cfg)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    own = {x.__name__: x for x in (Plain, WithoutAdapter, LazyOnly, Own)}
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", {k: v for k, v in META_ARCH_REGISTRY if k != "FCOS"} | own)


@pytest.mark.parametrize(
    "name, said",
    [
        ("RetinaNett", ", which is not in detectron2's META_ARCH_REGISTRY: did you mean RetinaNet?"),
        ("", ", which is not in detectron2's META_ARCH_REGISTRY: Of those that are, d2kd may read ATSS, "),
        ("Nothing", "import the module that registers yours before the model is built"),
        ("DistilledDetector", ", which distils: give what MODEL.META_ARCHITECTURE would be without distillation."),
        ("Plain", ": tests.config.test_registered.Plain is no DenseDetector of detectron2, expected one that d2kd"),
        (
            "WithoutAdapter",
            ": d2kd has no adapter for tests.config.test_registered.WithoutAdapter; it reads ATSS",
        ),
        ("GeneralizedRCNN", ".GeneralizedRCNN is a two-stage detector, and d2kd distils one-stage ones"),
        ("PanopticFPN", ".PanopticFPN is a two-stage detector"),
        ("ProposalNetwork", ".ProposalNetwork is a two-stage detector"),
        ("DistributionFCOS", ", which has no yacs form: write its LazyConfig"),
        ("LazyOnly", ", which has no yacs form, since tests.config.test_registered.LazyOnly takes other arguments"),
        ("FCOS", ", but the config has no MODEL.FCOS: call d2kd.modeling.detectors.add_fcos_config(cfg) before it"),
        ("GFL", ", but the config has no MODEL.GFL: call d2kd.modeling.detectors.add_gfl_config(cfg) before it"),
    ],
)
def test_each_refusal_is_its_own(name, said):
    with pytest.raises(ValueError) as error:
        build_registered(get_cfg(), name, "KEY")
    assert str(error.value).startswith(f"KEY is {name!r}") and said in str(error.value)
    pages = re.findall(r"(docs/\w+\.md)#([\w-]+)", str(error.value))
    assert len(pages) == (name != "DistilledDetector")
    for page, fragment in pages:
        assert fragment in map(anchor, re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), flags=re.MULTILINE))


def test_what_may_be_built_is_built():
    assert type(build_registered(plain(), "Own", "KEY")) is Own


def test_an_fcos_of_a_projects_own():
    """Whatever its keys are, it is built by the project."""
    META_ARCH_REGISTRY._obj_map["FCOS"] = Own
    assert type(build_registered(plain(), "FCOS", "KEY")) is Own


def test_the_list_has_no_detector_that_is_refused():
    with pytest.raises(ValueError) as error:
        build_registered(get_cfg(), "", "KEY")
    listed = re.search("may read (.*); import", str(error.value))[1].split(", ")
    assert {"RetinaNet", "GFL", "ATSS", "Own"} <= set(listed)
    assert not {"GeneralizedRCNN", "DistilledDetector", "PanopticFPN", "Plain", "WithoutAdapter"} & set(listed)
