"""What a project's code reads and sets of the student, it reads and sets of the model that distils it."""

import pickle
from copy import deepcopy

import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2kd.modeling import DistilledDetector
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, run_step


class Own(RetinaNet):
    """With attributes of every kind, read while it trains."""

    class_weight = 2.0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("offset", torch.zeros(1))
        self.gain = nn.Parameter(torch.ones(()))
        self.box_weight = 1.0
        self._scaled = 1.0

    @property
    def scale(self):
        return self._scaled

    @scale.setter
    def scale(self, value):
        self._scaled = 10.0 * value

    def losses(self, *args):
        losses = super().losses(*args)
        factor = self.class_weight * self.gain * self.box_weight * self.scale
        extra = self.extra.weight.sum() if hasattr(self, "extra") else 0
        return {name: factor * value + self.offset.sum() + extra for name, value in losses.items()}


def build(seed=0):
    return build_detector("RetinaNet", seed=seed, detector_class=Own)


@pytest.fixture
def model():
    return distilled(build())


@pytest.mark.parametrize("family", FAMILIES)
def test_attributes_of_the_student_are_read(family):
    detector = build_detector(family)
    model = distilled(detector, build_detector(family, seed=1), "bckd")
    for name in ("num_classes", "box2box_transform", "anchor_generator", "test_score_thresh", "head_in_features"):
        assert getattr(model, name) is getattr(detector, name)
    images = model.preprocess_image(make_batch())
    assert torch.equal(images.tensor, detector.preprocess_image(make_batch()).tensor)
    assert list(model.losses) == ["bckd_cls", "bckd_loc"]  # its own, not the student's method
    assert not hasattr(model, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        model.no_such_thing  # noqa: B018


def test_a_module_that_was_replaced_is_what_the_students_methods_use(model):
    """Also one that torch puts there without setting an attribute, as SyncBN's conversion does."""
    model._modules["backbone"] = nn.Identity()
    assert isinstance(model.preprocess_image.__self__.backbone, nn.Identity)


SETTINGS = {
    "a plain attribute": ("box_weight", 3.0),
    "one of the class": ("class_weight", 3.0),
    "a property": ("scale", 3.0),
    "a parameter": ("gain", nn.Parameter(torch.tensor(3.0))),
    "a plain attribute becomes a parameter": ("box_weight", nn.Parameter(torch.tensor(3.0))),
    "a buffer": ("offset", torch.full((1,), 3.0)),
    "a module": ("head", build(5).head),
    "a new module": ("extra", nn.Linear(1, 1)),
    "a private attribute": ("_scaled", 3.0),
    "Detectron2's normaliser": ("loss_normalizer", 7.0),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_set_reaches_the_student(kind, model):
    """The step that follows is that of the plain detector of which the same is set."""
    name, value = SETTINGS[kind]
    stock = deepcopy(model.student)
    before = run_step(distilled(deepcopy(stock)), make_batch())
    setattr(stock, name, deepcopy(value))
    setattr(model, name, value)
    expected, found = run_step(stock, make_batch()), run_step(model, make_batch())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert any(not torch.equal(x, before[name]) for name, x in expected.items())
    ours = {name for name in model.state_dict() if not name.startswith("distillation.")}
    assert ours == set(stock.state_dict())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in stock.named_parameters()}


def test_a_method_that_is_replaced(model):
    losses = {"loss_own": torch.zeros(())}

    def label_anchors(anchors, gt_instances):
        return type(model.student).label_anchors(model.student, anchors, gt_instances)

    def forward_training(images, features, predictions, gt_instances):
        model.student.label_anchors(model.anchor_generator(features), gt_instances)
        return losses

    model.label_anchors, model.forward_training = label_anchors, forward_training
    assert run_step(model, make_batch()).keys() == losses.keys()
    assert model.label_anchors is label_anchors  # a step leaves it


def test_a_normaliser_that_the_student_does_not_have_yet():
    """Detectron2's FCOS makes it in its first step."""
    stock, model = build_detector("FCOS"), distilled(build_detector("FCOS"))
    stock.loss_normalizer = model.loss_normalizer = 7.0
    expected, found = run_step(stock, make_batch()), run_step(model, make_batch())
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert model.loss_normalizer == stock.loss_normalizer != 7.0


def test_what_both_have_is_set_on_both(model):
    model.training = False
    assert not model.student.training
    model.input_format = "RGB"
    assert model.student.input_format == "RGB" and "input_format" in vars(model)


def test_what_this_model_computes_is_refused(model):
    for name in ("losses", "overlap", "device", "student"):
        with pytest.raises(AttributeError, match=name):
            setattr(model, name, None)
    assert model.student.device.type == "cpu" and callable(model.student.losses)


def test_children_may_be_replaced_while_they_are_gone_through(model):
    """As conversions of norms do."""
    for name, child in model.named_children():
        if name != "distillation":
            setattr(model, name, deepcopy(child))
    for name, child in model.student.named_children():
        setattr(model, name, deepcopy(child))
    assert all(getattr(model, name) is child for name, child in model.student.named_children())
    assert [*dict(model.named_children())] == [*dict(model.student.named_children()), "distillation"]
    assert run_step(model, make_batch())


def test_a_module_that_becomes_something_else(model):
    model.extra = nn.Linear(1, 1)
    model.extra = None
    assert model.extra is None and "extra.weight" not in model.state_dict()
    model.add_module("extra", nn.Linear(1, 1))
    assert model.student.extra is model.extra


def test_in_ddp(tmp_path, model):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        wrapped.module.box_weight = 0.0
        losses = run_step(wrapped, make_batch())
        assert all(value == 0 for value in losses.values())
    finally:
        torch.distributed.destroy_process_group()


def test_copies_have_attributes_of_their_own(model):
    model.box_weight = 3.0
    for copied in (deepcopy(model), pickle.loads(pickle.dumps(model)), model.twin()):
        copied.box_weight = 5.0
        assert (model.student.box_weight, copied.student.box_weight) == (3.0, 5.0)
        assert copied.student is not model.student and copied.scale == 1.0


class Answering(RetinaNet):
    """Its forward adds a way of inference."""

    trains_in_four_steps = True

    def forward(self, batched_inputs, scores_alone=False, *, factor=1.0):
        found = super().forward(batched_inputs)
        return [factor * x["instances"].scores for x in found] if scores_alone else found


class Changed(Answering):
    def forward(self, batched_inputs):
        return super().forward(batched_inputs)


def test_further_arguments_in_inference():
    detector = build_detector("RetinaNet", detector_class=Answering, test_score_thresh=0.0)
    model = distilled(detector, build_detector("RetinaNet", seed=1, detector_class=Answering), "bckd")
    losses = run_step(model, make_batch())
    assert losses["loss_kd_bckd_cls"] > 0
    stock = build_detector("RetinaNet", test_score_thresh=0.0)
    assert all(torch.equal(losses[name], value) for name, value in run_step(stock, make_batch()).items())
    model.eval()
    found = [x["instances"].scores for x in model(make_batch())]
    for scores in (model(make_batch(), True, factor=2.0), model(make_batch(), scores_alone=True, factor=2.0)):
        assert all(torch.equal(2 * a, b) and len(b) for a, b in zip(found, scores, strict=True))
    model.train()
    with pytest.raises(TypeError, match=r"in training with further arguments \(1 more, factor\), expected batched_inp"):
        model(make_batch(), True, factor=2.0)


def test_a_subclass_that_overrides_it_again_must_say_so_again():
    with pytest.raises(TypeError, match="Changed overrides DenseDetector.forward, .* write trains_in_four_steps = "):
        DistilledDetector(student=build_detector("RetinaNet", detector_class=Changed))
    Derived = type("Derived", (Answering,), {})
    assert distilled(build_detector("RetinaNet", detector_class=Derived)).trains_in_four_steps
