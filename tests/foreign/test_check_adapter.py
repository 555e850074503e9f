"""The self-check of an adapter: what it tells, what it catches, and that it leaves no trace."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from detectron2.layers import CycleBatchNormList
from detectron2.modeling.meta_arch import RetinaNet
from torch import nn

import d2kd
from d2kd.modeling import ADAPTER_REGISTRY
from d2kd.modeling.adapters import RetinaNetAdapter
from d2kd.modeling.detectors import DenseHead, DistributionFCOS, DistributionRetinaNet
from tests.foreign import heads
from tests.foreign.projects import SharedTrainingHead
from tests.helpers import FAMILIES, LEVELS, NUM_CLASSES, build_detector, distilled, make_batch, run_step


def distribution_detector(family):
    detector_class = dict(RetinaNet=DistributionRetinaNet, FCOS=DistributionFCOS)[family]
    stock = build_detector(family)
    head = DenseHead(
        input_shape=[stock.backbone.output_shape()[name] for name in LEVELS],
        num_classes=NUM_CLASSES,
        conv_dims=[8, 8, 8],
        num_anchors=2 if family == "RetinaNet" else 1,
        reg_max=5,
        centerness_on="box" if family == "FCOS" else None,
        scale_levels=True,
    )
    own = {} if family == "FCOS" else dict(anchor_generator=stock.anchor_generator, anchor_matcher=stock.anchor_matcher)
    pixels = dict(pixel_mean=[100.0] * 3, pixel_std=[50.0] * 3)
    return detector_class(
        backbone=stock.backbone, head=head, head_in_features=LEVELS, num_classes=NUM_CLASSES, **own, **pixels
    )


@pytest.mark.parametrize("norm", ["", "BN", "FrozenBN", nn.BatchNorm2d])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_families(family, norm):
    report = d2kd.check_adapter(build_detector(family, norm=norm, conv_dims=(8, 4)))
    assert report.spec.family == report.detector == family
    assert report.channels == {"cls": [8, 8, 4], "box": [8, 8, 4]}
    assert report.anchors == [2 if family == "RetinaNet" else 1] * 3
    assert (report.max_tail, report.strides) == (2, [8, 16, 32])


@pytest.mark.parametrize("family", ["RetinaNet", "FCOS"])
def test_heads_with_distributions(family):
    assert d2kd.check_adapter(distribution_detector(family)).spec.bins == 6


def test_the_report_can_be_read():
    report = d2kd.check_adapter(build_detector("ATSS"))
    assert str(report) == repr(report)
    lines = str(report).splitlines()
    assert lines[0] == "ATSS: its adapter fits"
    assert [line.split()[0] for line in lines[1:]] == [
        *("family", "classes", "anchors", "branch", "branch", "direct", "crossed", "features")
    ]
    assert "tail=0 to 2" in lines[-2] and "centerness" in lines[-3]
    assert "distributions of 5 bins" in str(d2kd.check_adapter(build_detector("GFL")))


def test_towers_of_unequal_depth():
    detector = build_detector("RetinaNet")
    detector.head.bbox_subnet = detector.head.bbox_subnet[:2]
    report = d2kd.check_adapter(detector)
    assert {branch: len(x) for branch, x in report.channels.items()} == {"cls": 3, "box": 2}
    assert report.max_tail == 1


class Counting(nn.Module):
    """A norm with state that changes even in inference, and draws random numbers."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(channels))

    def forward(self, x):
        self.calls += 1
        self.last = x.mean(dim=(0, 2, 3))
        torch.rand(1)
        return x


@pytest.mark.parametrize("norm", ["BN", nn.BatchNorm2d, Counting])
@pytest.mark.parametrize("training", [True, False])
def test_no_trace(training, norm):
    """Modes of every module, buffers, counters, hooks and the random state are as they were."""
    detector = build_detector("RetinaNet", norm=norm).train(training)
    detector.head.cls_subnet[1].train(not training)
    for module in detector.modules():
        if isinstance(module, CycleBatchNormList):
            module._pos = 1  # of a head that was interrupted
    called = []
    detector.head.register_forward_hook(lambda *_: called.append(1))

    def state():
        return {
            "modes": [module.training for module in detector.modules()],
            "buffers": {name: (x.data_ptr(), x.tolist()) for name, x in detector.named_buffers()},
            "weights": {name: (x.tolist(), x.requires_grad, x.grad) for name, x in detector.named_parameters()},
            "counters": [m._pos for m in detector.modules() if isinstance(m, CycleBatchNormList)],
            "hooks": [len(module._forward_hooks) for module in detector.modules()],
            "attributes": sorted(vars(detector)),
            "random": torch.get_rng_state().tolist(),
        }

    before = state()
    d2kd.check_adapter(detector)
    assert state() == before
    assert called
    detector.head.__class__ = heads.Attention
    with pytest.raises(ValueError):
        d2kd.check_adapter(detector)
    assert state() == before


def test_between_two_steps():
    """A training step that follows is the one that would have followed."""
    model = distilled(build_detector("FCOS", norm="BN"), build_detector("FCOS", seed=1), "crosskd").train()
    run_step(model, make_batch())
    expected = run_step(deepcopy(d2kd.student(model)), make_batch(seed=1))
    d2kd.check_adapter(d2kd.student(model))
    d2kd.check_adapter(model.teacher.detector)
    found = run_step(model, make_batch(seed=1))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert found["loss_kd_crosskd_cls"] > 0


def test_inside_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        d2kd.check_adapter(build_detector("RetinaNet"))


@pytest.mark.parametrize("head", [None, SharedTrainingHead])
def test_a_detector_in_half_precision(head):
    detector = heads.with_head("RetinaNet", head, norm=nn.BatchNorm2d).to(torch.bfloat16)
    d2kd.check_adapter(detector)
    detector.head.__class__ = heads.Attention
    with pytest.raises(ValueError, match="forward does more"):
        d2kd.check_adapter(detector)


def test_a_tail_at_which_the_head_does_more():
    """Something between two blocks: only the tails that pass it show it."""

    class Between(heads.RetinaNetHead):
        def forward(self, features):
            def run(tower, x):
                return tower[2:](3 * tower[:2](x))

            return (
                [self.cls_score(run(self.cls_subnet, x)) for x in features],
                [self.bbox_pred(run(self.bbox_subnet, x)) for x in features],
            )

    detector = build_detector("RetinaNet")
    detector.head.__class__ = Between
    with pytest.raises(ValueError, match=r"own taps \(tail=1\) do not give its own predictions: the maps of list 0"):
        d2kd.check_adapter(detector)


def test_a_block_whose_width_cannot_be_read_off():
    """Pairing compares widths before anything runs: it reads them off the last convolution of a block."""

    class Bottleneck(nn.Sequential):
        def forward(self, x):
            return self[0](self[1](x))

    detector = build_detector("RetinaNet")
    detector.head.cls_subnet[2] = Bottleneck(nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1))
    with pytest.raises(ValueError, match=r"'cls' have convolutions to \[8, 8, 16\] channels, but give \[8, 8, 8\]"):
        d2kd.check_adapter(detector)


class Wrong(RetinaNet):
    """Read by an adapter that is wrong in one thing."""


@pytest.fixture
def register(monkeypatch):
    """Register an adapter of ``Wrong`` for one test."""
    stock = dict(ADAPTER_REGISTRY)

    def register(**methods):
        monkeypatch.setattr(ADAPTER_REGISTRY, "_obj_map", dict(stock))
        ADAPTER_REGISTRY.register(type("WrongAdapter", (RetinaNetAdapter,), {"detector_class": Wrong, **methods}))
        return build_detector("RetinaNet", detector_class=Wrong)

    return register


def changed(edit):
    """A dense_output that is edited."""

    def dense_output(self, detector, predictions, anchors):
        output = RetinaNetAdapter.dense_output(self, detector, predictions, anchors)
        edit(output)
        return output

    return dense_output


def flipped_classes(output):
    output.logits = [x.as_strided(x.shape, x.stride()) for x in output.logits]
    for level, x in enumerate(output.logits):
        n, a, k, h, w = x.shape
        # The channels read as (class, anchor) where the head has (anchor, class).
        output.logits[level] = x.flatten(1, 2).unflatten(1, (k, a)).transpose(1, 2)


def swapped_sides(output):
    output.box_params = [x[:, :, [1, 0, 2, 3]] for x in output.box_params]


def transposed_anchors(output):
    output.anchors = [x.transpose(1, 2).reshape(x.shape) for x in output.anchors]


def other_decoding(output):
    decode = output.decode
    output.decode = lambda params, anchors, level: decode(params, anchors + 1, level)


def copied_logits(output):
    output.logits = [x.clone() for x in output.logits]


def flat_anchors(output):
    output.anchors = [x.flatten(0, 2) for x in output.anchors]


def one_level_less(output):
    output.logits = output.logits[:-1]


@pytest.mark.parametrize(
    "edit, message",
    [
        (flipped_classes, "detects class .* as class"),
        (swapped_sides, "it decodes class .* but detects"),
        (transposed_anchors, "it decodes class"),
        (other_decoding, "it decodes class"),
        (copied_logits, "are no views of the head's maps"),
        (flat_anchors, "dense_output|anchors of level 0 have shape"),
        (one_level_less, "its logits are 2 maps for 3 levels"),
    ],
)
def test_a_wrong_dense_output(register, edit, message):
    detector = register(dense_output=changed(edit))
    with pytest.raises((TypeError, ValueError), match=message) as error:
        d2kd.check_adapter(detector)
    assert "WrongAdapter does not fit this Wrong with a RetinaNetHead" in str(error.value)
    assert "Register an Adapter for Wrong whose dense_output()" in str(error.value)


def test_boxes_returned_first(register):
    """With four classes and one anchor the two lists have the same shapes: only what is detected tells them apart."""
    kwargs = dict(detector_class=heads.BoxesReturnedFirstDetector, num_classes=4)
    detector = build_detector("RetinaNet", **kwargs)
    detector.head.__class__ = heads.BoxesReturnedFirst
    distilled(build_detector("RetinaNet", num_classes=4), detector, "bckd").load_teacher()
    with pytest.raises(ValueError, match="whose dense_output.. gives each location the class scores"):
        d2kd.check_adapter(detector)


@pytest.mark.parametrize(
    "method, task",
    [
        ("towers", "lists the blocks"),
        ("predict", "runs the predictors"),
        ("dense_output", "reads what its head returns"),
        ("describe", "says what"),
        ("assignment", "reads what its label_anchors"),
    ],
)
@pytest.mark.parametrize("error", [KeyError("p3"), AttributeError("no cls_score"), IndexError(), RuntimeError("shape")])
def test_a_method_that_fails_is_named(register, method, task, error):
    def fail(*args):
        raise error

    detector = register(**{method: fail})
    with pytest.raises(TypeError, match=rf"whose {method}\(\) {task}") as raised:
        d2kd.check_adapter(detector)
    assert raised.value.__cause__ is error


def test_labels_of_other_places(register):
    def assignment(self, detector, labelled, gt_instances, sizes):
        labels, boxes = labelled
        return RetinaNetAdapter.assignment(
            self, detector, ([x[::2] for x in labels], [x[::2] for x in boxes]), gt_instances, sizes
        )

    with pytest.raises(ValueError, match=r"labels have shapes .* whose assignment\(\)"):
        d2kd.check_adapter(register(assignment=assignment))


def test_a_detector_without_label_anchors(monkeypatch):
    monkeypatch.delattr(RetinaNet, "label_anchors")
    with pytest.raises(TypeError, match="RetinaNet has no label_anchors"):
        d2kd.check_adapter(build_detector("RetinaNet"))


def test_predictions_that_are_missing_from_predict(register):
    detector = register(predict=lambda self, head, level, towers: (head.cls_score(towers["cls"]),))
    with pytest.raises(TypeError, match=r"whose predict\(\) returns all the lists that dense_output\(\) reads"):
        d2kd.check_adapter(detector)
    detector = register(predict=lambda self, head, level, towers: (head.cls_score(towers["cls"]),) * 3)
    with pytest.raises(ValueError, match="3 lists of maps and its 2"):
        d2kd.check_adapter(detector)


def test_anything_else_is_refused():
    model = distilled(build_detector("FCOS"))
    with pytest.raises(TypeError, match="DistilledDetector is no DenseDetector of detectron2"):
        d2kd.check_adapter(model)


def test_it_loads_on_first_use():
    code = "import d2kd, sys; assert 'detectron2' not in sys.modules; print(d2kd.check_adapter.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "check_adapter\n"
