"""d2kd.student: the plain detector inside whatever trains it."""

import copy
import inspect

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import d2kd
import d2kd.modeling.distillation.student_step
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, run_step


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_name_is_a_function_beside_the_module_of_that_name():
    assert inspect.isfunction(d2kd.student) and "student" in dir(d2kd)
    assert inspect.ismodule(d2kd.modeling.distillation.student_step)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_detector_that_was_given(family):
    detector = build_detector(family)
    model = distilled(detector, build_detector(family, seed=1), "bckd")
    assert d2kd.student(model) is detector
    assert isinstance(detector, DenseDetector)
    assert list(detector.state_dict()) == list(build_detector(family).state_dict())


def test_a_plain_detector_is_returned_as_it_is():
    detector = build_detector("FCOS")
    assert d2kd.student(detector) is detector


@pytest.mark.parametrize("plain", [False, True], ids=["distilled", "plain"])
def test_it_looks_through_ddp(process_group, plain):
    detector = build_detector("FCOS")
    inner = detector if plain else distilled(detector)
    assert d2kd.student(DistributedDataParallel(inner)) is detector
    assert d2kd.student(DataParallel(inner)) is detector


def test_it_sees_what_training_did():
    """Also modules that were replaced after the student was wrapped, as SyncBN's conversion does."""
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), "bckd")
    before = {k: v.clone() for k, v in d2kd.student(model).state_dict().items()}
    sum(run_step(model, make_batch()).values()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.head = build_detector("FCOS", seed=5).head
    after = d2kd.student(model).state_dict()
    assert not torch.equal(after["backbone.fpn_lateral3.weight"], before["backbone.fpn_lateral3.weight"])
    for name, value in model.state_dict().items():
        if not name.startswith("distillation."):
            assert torch.equal(after[name], value), name
    assert d2kd.student(model.eval()).training is False


def test_its_copy_does_not_train_on():
    model = distilled(build_detector("FCOS"))
    kept = copy.deepcopy(d2kd.student(model))
    with torch.no_grad():
        model.head.ctrness.bias += 1
    assert d2kd.student(model).head.ctrness.bias != kept.head.ctrness.bias
    assert type(kept) is type(d2kd.student(model))


@pytest.mark.parametrize(
    "make, found",
    [
        (lambda: nn.Linear(1, 1), "a Linear, expected a DistilledDetector"),
        (lambda: {"model": 1}, "a dict, expected"),
        (lambda: None, "a NoneType, expected"),
        (lambda: DataParallel(nn.Linear(1, 1)), "a DataParallel around a Linear, expected"),
    ],
)
def test_anything_else_is_named(make, found):
    with pytest.raises(TypeError) as error:
        d2kd.student(make())
    assert found in str(error.value)
