"""A converted checkpoint answers what OpenMMLab's network answers, tensor by tensor."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from torch.testing import assert_close

from d2kd.config import get_config
from d2kd.conversion import convert, read_stated, write_checkpoint
from d2kd.modeling.adapters import get_adapter
from d2kd.modeling.distillation.teacher import Teacher
from tests.conversion.openmmlab import Spec, config, pyramid, random_state, run

# What a file does not tell, as options of convert(); p6_from is left to the file.
CASES = {
    "gfl": Spec("gfl"),
    "gfl of 9 bins": Spec("gfl", reg_max=8, num_classes=7),
    "gfl 50": Spec("gfl", depth=50),
    "gfl 50 caffe": Spec("gfl", depth=50, style="caffe"),
    "gfl 34": Spec("gfl", depth=34, width=32),
    "gfl of full width": Spec("gfl", width=256, num_classes=80),
    "gfl with P6 from C5": Spec("gfl", p6_from="c5"),
    "atss": Spec("atss"),
    "atss 50": Spec("atss", depth=50, num_classes=1),
    "retinanet": Spec("retinanet", p6_from="c5"),
    "retinanet with P6 from P5": Spec("retinanet", p6_from="p5"),
    "retinanet 50": Spec("retinanet", depth=50, p6_from="c5"),
    "fcos": Spec("fcos", style="caffe"),
    "fcos 50": Spec("fcos", depth=50, style="caffe"),
    "fcos 50 pytorch": Spec("fcos", depth=50, style="pytorch"),
    "fcos in strides": Spec("fcos", style="caffe", norm_on_bbox=True),
    "fcos with centerness on the box tower": Spec("fcos", style="caffe", centerness_on_reg=True),
    "fcos with both": Spec("fcos", style="caffe", centerness_on_reg=True, norm_on_bbox=True),
}


def converted(spec, state=None, **kwargs):
    """As one who knows its config would convert it; the style is given where it is not the family's."""
    usual = "caffe" if spec.family == "fcos" else "pytorch"
    return convert(
        random_state(spec) if state is None else state,
        spec.family,
        depth=spec.depth,
        style=None if spec.style == usual else spec.style,
        centerness_on_reg=spec.centerness_on_reg,
        norm_on_bbox=spec.norm_on_bbox,
        **kwargs,
    )


# What only the config in the file tells.
STATED = {
    "retinanet of other anchors": Spec("retinanet", scales=(2, 2), ratios=(0.3, 0.8, 1.0, 2.5), offset=0.5),
    "retinanet of other codes": Spec("retinanet", p6_from="c5", stds=(0.5, 1.5, 0.25, 2.0), relu_before_p7=True),
    "atss of other anchors": Spec("atss", scales=(4, 1), ratios=(2.0,), stds=(1.0, 1.0, 0.5, 0.5)),
    "gfl 50 caffe": Spec("gfl", depth=50, style="caffe"),
    "gfl of other pixels": Spec("gfl", pixels=(True, (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)), relu_before_p7=True),
    "gfl with P6 from C5 of as many channels": Spec("gfl", width=512, p6_from="c5"),
    "fcos 50 pytorch": Spec("fcos", depth=50, style="pytorch", norm_on_bbox=True, centerness_on_reg=True),
    "fcos without ReLU": Spec("fcos", style="caffe", relu_before_p7=False),
}


def loaded(conversion, path):
    """The detector of the node that the conversion names, loaded by Detectron2."""
    write_checkpoint(conversion.model, path)
    detector = instantiate(conversion.target.model).eval()
    checkpointer = DetectionCheckpointer(detector)
    found = []
    checkpointer._log_incompatible_keys = found.append
    rest = checkpointer.load(str(path))
    assert not found[0].missing_keys and not found[0].unexpected_keys and not found[0].incorrect_shapes
    assert "matching_heuristics" not in rest
    return detector


@torch.no_grad()
def answers(detector, images, input_format):
    """Pyramid and dense output of d2kd's reading of ``detector``, from RGB images."""
    inputs = [{"image": image if input_format == "RGB" else image.flip(0)} for image in images]
    features = detector.backbone(detector.preprocess_image(inputs).tensor)
    features = [features[name] for name in detector.head_in_features]
    output = get_adapter(detector).dense_output(detector, detector.head(features), detector.anchor_generator(features))
    return features, output


def close(actual, expected):
    assert actual.shape == expected.shape
    assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def same_anchors(actual, expected):
    """For each of ``actual`` (A, H, W, 4), which of ``expected`` it is."""
    distances = (actual[:, None] - expected[None]).abs().flatten(2).amax(dim=-1)
    order = distances.argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(expected)))
    close(actual, expected[order])
    return order


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_every_map_and_box_is_the_same(spec, tmp_path):
    assert_same_network(spec, converted(spec), tmp_path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("spec", STATED.values(), ids=STATED)
def test_what_the_file_says_is_carried_over(spec, version, tmp_path):
    meta = {"mmdet_version": f"{version}.1.0", "config" if version == 2 else "cfg": config(spec, version)}
    stated = read_stated(meta, spec.family)
    conversion = convert(random_state(spec), spec.family, depth=spec.depth, stated=stated)
    assert_same_network(spec, conversion, tmp_path)
    assert conversion.target.pixels.input_format == ("BGR" if spec.image[0] else "RGB")
    names = {"model": get_config(conversion.target.config).model}
    exec("\n".join(conversion.target.statements()), names)
    assert names["model"] == conversion.target.model


def assert_same_network(spec, conversion, tmp_path):
    state = random_state(spec)
    detector = loaded(conversion, tmp_path / "x.pth")
    images = torch.randint(0, 256, (2, 3, 128, 160)).float()
    features, output = answers(detector, images, conversion.target.pixels.input_format)
    expected = run(state, spec, images)
    assert len(features) == len(expected.features) == 5
    for level in range(5):
        close(features[level], expected.features[level])
        order = same_anchors(output.anchors[level], expected.anchors[level])
        close(output.logits[level], expected.logits[level][:, order])
        close(output.box_params[level], expected.boxes[level][:, order])
        close(output.boxes[level], expected.decoded[level][:, order])
        if expected.centerness is not None:
            close(output.centerness[level], expected.centerness[level])
    assert (output.centerness is None) == (expected.centerness is None)


def test_the_comparison_sees_what_a_conversion_can_get_wrong():
    """Each fact that the cases vary changes OpenMMLab's answer."""
    images = torch.randint(0, 256, (1, 3, 128, 160)).float()
    spec = Spec("fcos", depth=50, style="caffe")
    state = random_state(spec)

    def differs(one, other):
        return any((x - y).abs().max() > 1e-2 * x.abs().max() for x, y in zip(one, other))

    levels, expected = pyramid(state, spec, images), run(state, spec, images)
    assert differs(levels, pyramid(state, replace(spec, style="pytorch"), images))
    assert differs(levels, pyramid(state, replace(spec, family="gfl"), images))  # no ReLU before P7
    assert differs(expected.decoded, run(state, replace(spec, norm_on_bbox=True), images).decoded)
    assert differs(expected.centerness, run(state, replace(spec, centerness_on_reg=True), images).centerness)


@pytest.mark.parametrize("family", ["gfl", "atss", "retinanet", "fcos"])
@pytest.mark.parametrize("depth", [34, 101])
def test_every_tensor_of_deeper_backbones_has_its_place(family, depth):
    spec = Spec(family, depth=depth, width=32, p6_from="c5" if family == "retinanet" else "p5")
    state = random_state(spec)
    conversion = convert(state, family, depth=depth)
    assert sorted([*conversion.placed.values(), *conversion.dropped]) == sorted(state)
    wanted = conversion.target.state_dict()
    assert conversion.model.keys() == wanted.keys() == conversion.placed.keys()
    assert all(conversion.model[key].shape == value.shape for key, value in wanted.items())
    several = {"cls_score", "bbox_pred"} if family == "retinanet" else set()  # predictors of more than one anchor
    reordered = [key for key in conversion.placed if key.split(".")[1] in several]
    for key, file_key in conversion.placed.items():
        assert torch.equal(conversion.model[key], state[file_key]) != (key in reordered)


def test_a_published_student_needs_no_change_but_its_depth():
    """The configs' own sizes are those of the papers."""
    published = (("gfl", 101, "p5"), ("atss", 101, "p5"), ("retinanet", 101, "c5"), ("fcos", 50, "p5"))
    for family, depth, p6_from in published:
        state = random_state(Spec(family, depth=depth, width=256, num_classes=80, p6_from=p6_from))
        changes = convert(state, family, depth=depth).target.changes
        assert changes == ({} if depth == 50 else {"backbone.bottom_up.stages.depth": 101})


@pytest.mark.parametrize("family", ["gfl", "atss", "retinanet", "fcos"])
def test_a_teacher_loads_it(family, tmp_path):
    spec = Spec(family, style="caffe" if family == "fcos" else "pytorch")
    conversion = converted(spec)
    write_checkpoint(conversion.model, tmp_path / "x.pth")
    teacher = Teacher(
        conversion.target.model, str(tmp_path / "x.pth"), "BGR" if family == "fcos" else None, engine="eager"
    )
    teacher.load(torch.device("cpu"), torch.float32)
    assert teacher.input_format == conversion.target.pixels.input_format
    weights = teacher.detector.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in conversion.model.items())


def test_the_weights_are_copies_alone_in_their_storage():
    """A view would be saved with all that it is a view of, and change with it."""
    state = random_state(Spec("gfl"))
    state = {key: torch.stack([value, value])[1] for key, value in state.items()}
    model = converted(Spec("gfl"), state).model
    before = {key: value.clone() for key, value in model.items()}
    for value in state.values():
        value.zero_()
    for key, value in model.items():
        assert torch.equal(value, before[key])
        assert value.is_contiguous() and value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_half_precision_becomes_single():
    state = random_state(Spec("gfl"))
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    model = converted(Spec("gfl"), half).model
    assert {value.dtype for value in model.values()} == {torch.float32, torch.int64}


def test_counters_of_batches_are_filled_or_dropped():
    """A frozen norm has none, one with trained affine parameters has."""
    conversion = converted(Spec("fcos", style="caffe"))
    assert {key.rpartition(".")[2] for key in conversion.dropped} == {"num_batches_tracked"}
    assert "frozen norm" in conversion.dropped["backbone.bn1.num_batches_tracked"]
    state = random_state(Spec("gfl"))
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    for key in counters:
        del state[key]
    conversion = converted(Spec("gfl"), state)
    assert len(conversion.filled) == len(counters) > 0
    assert all(conversion.model[key].item() == 0 for key in conversion.filled)


def test_the_statements_are_the_node():
    """What the tool prints, in a config file, gives the model that the checkpoint fits."""
    spec = Spec("fcos", num_classes=2, style="pytorch", norm_on_bbox=True)
    conversion = converted(spec)
    assert Path(conversion.target.config).name == "fcos_openmmlab.py"
    names = {"model": get_config(conversion.target.config).model}
    exec("\n".join(conversion.target.statements()), names)
    instantiate(names["model"]).load_state_dict(conversion.model)
    assert names["model"] == conversion.target.model
