"""What the teacher sees of a batch: its channel order, its pixel statistics, its canvas."""

from copy import deepcopy

import pytest
import torch
from detectron2.modeling.meta_arch import RetinaNet

from d2kd.losses import BinaryClassificationKD, IoULocalizationKD
from d2kd.modeling import DistilledDetector, Teacher
from d2kd.modeling.adapters import input_format_of
from tests.helpers import FAMILIES, build_detector, distilled, make_batch, run_step


def run_teacher(teacher, batch, canvas, sizes, input_format="BGR"):
    held = Teacher(teacher, engine="eager")
    held.load(torch.device("cpu"), torch.float32)
    step = held.run(
        batch,
        input_format=input_format,
        canvas=canvas,
        levels=range(len(sizes)),
        tap_indices={"cls": {0, 1}, "box": {2}},
    )
    return step.crop(sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_different_sizes_have_anchors_of_their_own(family):
    """Regions made of the teacher's anchors and boxes: those of the batch before would be elsewhere."""

    def model():
        pair = (build_detector(family, seed=i, backbone_norm="FrozenBN") for i in (0, 1))
        losses = (IoULocalizationKD(source=source, region="inside_box") for source in ("student", "crossed"))
        return distilled(*pair, dict(zip(("direct", "crossed"), losses, strict=True)))

    small, large = make_batch([(32, 48)] * 2), make_batch([(64, 80)] * 2)
    one = model()
    for batch in (small, large, small):
        found, expected = run_step(one, batch), run_step(model(), batch)
        for name in ("loss_kd_direct", "loss_kd_crossed"):
            assert torch.equal(found[name], expected[name]) and expected[name] > 0


def test_an_rgb_teacher_sees_rgb_and_its_own_pixel_statistics():
    stats = dict(pixel_mean=[10.0, 20.0, 30.0], pixel_std=[2.0, 3.0, 4.0])
    rgb = build_detector("RetinaNet", input_format="RGB", **stats)
    batch = make_batch([(48, 64), (48, 64)])
    sizes = [(6, 8), (3, 4), (2, 2)]
    run = run_teacher(rgb, batch, (48, 64), sizes)
    images = torch.stack([x["image"].flip(0) for x in batch])
    pixels = (images - torch.tensor([10.0, 20, 30]).view(3, 1, 1)) / torch.tensor([2.0, 3, 4]).view(3, 1, 1)
    with torch.no_grad():
        logits, _ = rgb.head([rgb.backbone(pixels)[name] for name in rgb.head_in_features])
    for found, expected in zip(run.output.logits, logits, strict=True):
        torch.testing.assert_close(found.flatten(1, 2), expected, rtol=1e-5, atol=1e-5)
    # The same images, already in RGB.
    flipped = [{**x, "image": x["image"].flip(0)} for x in batch]
    same = run_teacher(rgb, flipped, (48, 64), sizes, input_format="RGB")
    assert torch.equal(same.output.logits[0], run.output.logits[0])


def test_the_channel_order_may_be_set_for_detectors_without_one():
    batch = make_batch()
    losses = [
        run_step(
            DistilledDetector(
                student=build_detector("FCOS"),
                teacher=dict(model=build_detector("FCOS", seed=1), input_format=teacher),
                losses=dict(kd=BinaryClassificationKD()),
                input_format=student,
            ),
            batch,
        )["loss_kd_kd"].item()
        for student, teacher in ((None, None), ("BGR", "BGR"), ("RGB", "RGB"), (None, "RGB"), ("RGB", None))
    ]
    assert losses[0] == losses[1] == losses[2] != losses[3] == losses[4]


def test_channel_orders_that_make_no_sense_are_refused():
    detector = build_detector("RetinaNet", input_format="BGR")
    with pytest.raises(ValueError, match="model.x is 'RGB', but the RetinaNet itself has input_format='BGR'"):
        input_format_of(detector, "RGB", "model.x")
    with pytest.raises(ValueError, match="model.x is 'HSV', expected 'BGR', 'RGB' or 'L'"):
        input_format_of(build_detector("FCOS"), "HSV", "model.x")
    with pytest.raises(ValueError, match="model.x is 'L', but the FCOS's pixel_mean has 3 channels: 'L' is for one"):
        input_format_of(build_detector("FCOS"), "L", "model.x")


@pytest.mark.parametrize("family", FAMILIES)
def test_its_canvas_is_the_students_rounded_up_and_its_maps_are_cropped(family):
    """A teacher that pads to multiples of 32 beside a student of multiples of 16, whose canvas stays its own."""
    student = build_detector(family)
    teacher = build_detector(family, seed=1)
    teacher.backbone._size_divisibility = 32
    batch = make_batch([(40, 48), (32, 60)])  # the student's canvas is 48x64, the teacher's 64x64
    sizes = [(6, 8), (3, 4), (2, 2)]
    alone = run_step(deepcopy(student), batch)
    model = distilled(student, teacher, "bckd")
    seen = {}
    model.losses["bckd_loc"].register_forward_pre_hook(lambda m, args: seen.update(args=args))
    losses = run_step(model, batch)
    assert all(torch.equal(losses[name], value) for name, value in alone.items())

    pixels = torch.zeros(2, 3, 64, 64)
    for padded, item in zip(pixels, batch, strict=True):
        h, w = item["image"].shape[-2:]
        padded[:, :h, :w] = (item["image"] - teacher.pixel_mean) / teacher.pixel_std
    with torch.no_grad():
        features = [teacher.backbone(pixels)[name] for name in teacher.head_in_features]
        predictions = teacher.head(features)
    assert features[0].shape[-2:] == (8, 8)
    output = seen["args"][1]
    assert output.sizes == sizes
    for level, (h, w) in enumerate(sizes):
        assert torch.equal(output.logits[level].flatten(1, 2), predictions[0][level][..., :h, :w])
        assert torch.equal(output.box_params[level].flatten(1, -3), predictions[1][level][..., :h, :w])
        # The same anchors as the student's, which lie on the same cells.
        assert torch.equal(output.anchors[level], seen["args"][0].anchors[level])
        assert output.boxes[level].shape == (2, output.anchors[level].shape[0], h, w, 4)
    taps = run_teacher(teacher, batch, (48, 64), sizes).taps
    with torch.no_grad():
        towers = [teacher.head.cls_subnet[:2], teacher.head.bbox_subnet]
        for key, tower in zip((("cls", 1), ("box", 2)), towers, strict=True):
            for tap, feature, (h, w) in zip(taps[key], features, sizes, strict=True):
                assert torch.equal(tap, tower(feature)[..., :h, :w])
        assert all(torch.equal(a, b[..., :h, :w]) for a, b, (h, w) in zip(taps["cls", 0], features, sizes, strict=True))


def test_a_square_teacher_gets_squares():
    student, teacher = build_detector("FCOS"), build_detector("FCOS", seed=1, square_pad=96)
    model = distilled(student, teacher, "crosskd")
    seen = []
    teacher.backbone.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    losses = run_step(model, make_batch())
    assert seen == [(2, 3, 96, 96)]
    assert all(value.isfinite() for value in losses.values())


def test_a_teacher_with_its_own_preprocessing_is_refused():
    class Resizing(RetinaNet):
        def preprocess_image(self, batched_inputs):
            return super().preprocess_image(batched_inputs)

    held = Teacher(build_detector("RetinaNet", detector_class=Resizing))
    with pytest.raises(TypeError, match="The teacher Resizing overrides preprocess_image"):
        held.load(torch.device("cpu"), torch.float32)
    assert not held.is_loaded


@pytest.mark.parametrize("key", ["size_divisibility", "size_divisiblity"])
def test_a_divisor_among_the_padding_constraints(monkeypatch, key):
    """Detectron2's ViT pyramid misspells it, and its property says 0."""
    held = Teacher(build_detector("RetinaNet"))
    held.load(torch.device("cpu"), torch.float32)
    backbone = type(held.detector.backbone)
    monkeypatch.setattr(backbone, "padding_constraints", property(lambda self: {key: 32, "square_size": 0}))
    monkeypatch.setattr(backbone, "size_divisibility", property(lambda self: 0))
    assert held.canvas(40, 64) == (64, 64)


def test_levels_smaller_than_the_students_are_refused():
    with pytest.raises(ValueError, match=r"On a canvas of 48x64 the teacher's levels are .*\(6, 8\).*\(7, 8\)"):
        run_teacher(build_detector("RetinaNet"), make_batch([(48, 64)]), (48, 64), [(7, 8), (3, 4), (2, 2)])
