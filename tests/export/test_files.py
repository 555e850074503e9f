"""A file detects what the student does, alone, in batches and in images of any size, or it is not written."""

import json
import re
import resource
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN
from PIL import Image

from d2kd.checkpoint import whole_file
from d2kd.export import DETECTIONS, DetectionGraph, ExportError, load_student, random_image, write_file
from d2kd.export.comparison import BOX_TOLERANCE, compare, detect
from d2kd.export.formats import load_format
from d2kd.export.graph import instances_of
from d2kd.modeling.backbones import TimmBackbone
from d2kd.modeling.detectors import DenseHead, DistributionATSS, DistributionFCOS, DistributionRetinaNet
from tests.distilled_run import Run
from tests.helpers import FAMILIES, NUM_CLASSES, build_backbone, build_detector

SIZES = [(160, 208), (64, 64), (33, 200), (131, 77)]


@pytest.fixture
def fcos(tmp_path):
    return Run(tmp_path, "FCOS")


def trained(family, **kwargs):
    """A detector without scores of exactly 1, whose order would be chance."""
    detector = build_detector(family, **kwargs).eval()
    with torch.no_grad():
        detector.head.cls_score.weight *= 0.1
    return detector


def assert_detects_the_same(run, detector):
    for seed, (size, count) in enumerate(zip(SIZES, (1, 2, 1, 3))):
        images = [random_image(3, size, 10 * seed + i) for i in range(count)]
        outputs = run(torch.stack(images))
        for i, expected in enumerate(detect(detector, images)):
            assert len(expected) > 0
            comparison = compare(expected, instances_of(outputs, i, size))
            assert comparison.same, comparison
        boxes, scores, classes, counts = outputs
        assert scores.shape == (count, detector.max_detections_per_image)
        empty = torch.arange(scores.shape[1]) >= counts[:, None]
        assert (boxes[empty] == 0).all() and (scores[empty] == 0).all() and (classes[empty] == -1).all()
        assert classes.dtype == counts.dtype == torch.int64


@pytest.mark.parametrize("family, kind", [*((family, "onnx") for family in FAMILIES), ("ATSS", "torchscript")])
def test_it_detects_the_same_in_batches_and_images_of_any_size(family, kind, tmp_path):
    detector = trained(family, max_detections_per_image=40)
    path = tmp_path / "student"
    proof = write_file(detector, path, kind, [random_image(3, (96, 128), 1), random_image(3, (64, 64), 2)])
    assert proof.any_size and proof.any_batch and len(proof.images) == 3
    assert proof.other_size.size == (144, 86) and proof.worst.box <= BOX_TOLERANCE
    assert_detects_the_same(load_format(kind, path, DETECTIONS), detector)


def test_an_exported_program_too(tmp_path):
    detector = trained("FCOS", levels=["p4"], max_detections_per_image=40)
    proof = write_file(detector, tmp_path / "x.pt2", "exported_program", [random_image(3, (96, 128), 1)])
    assert proof.any_size and proof.any_batch
    assert_detects_the_same(load_format("exported_program", tmp_path / "x.pt2", DETECTIONS), detector)


@pytest.mark.parametrize(
    "family, detector_class",
    [("RetinaNet", DistributionRetinaNet), ("FCOS", DistributionFCOS), ("ATSS", DistributionATSS)],
)
def test_the_graph_reads_distributions(family, detector_class):
    plain = build_detector(family)
    anchors = sum(plain.anchor_generator.num_anchors) // 3
    head = DenseHead(
        input_shape=[ShapeSpec(channels=8)] * 3,
        num_classes=NUM_CLASSES,
        conv_dims=[8],
        num_anchors=anchors,
        reg_max=4,
        centerness_on=None if family == "RetinaNet" else "box",
        prior_prob=0.3,
    )
    for predictor in (head.cls_score, head.bbox_pred):
        torch.nn.init.normal_(predictor.weight, std=0.1)
    own = {} if family == "FCOS" else dict(anchor_generator=plain.anchor_generator)
    own |= dict(assigner=plain.assigner) if family == "ATSS" else {}
    own |= dict(anchor_matcher=plain.anchor_matcher) if family == "RetinaNet" else {}
    detector = detector_class(
        backbone=build_backbone(),
        head=head,
        head_in_features=plain.head_in_features,
        num_classes=NUM_CLASSES,
        pixel_mean=[120.0] * 3,
        pixel_std=[60.0] * 3,
        **own,
    ).eval()
    assert_detects_the_same(DetectionGraph(detector), detector)


def test_a_timm_backbone_and_a_square_canvas(tmp_path):
    detector = trained("GFL", square_pad=416)
    bottom_up = TimmBackbone("mobilenetv3_small_050", out_indices=[2, 3])
    detector.backbone = FPN(
        bottom_up, ["res3", "res4"], 8, norm="BN", top_block=detector.backbone.top_block, square_pad=416
    ).eval()
    detector.backbone.top_block.in_feature = "p4"
    detector.backbone.top_block.conv = torch.nn.Conv2d(8, 8, 3, 2, 1)
    detector.test_score_thresh = 0.1
    proof = write_file(detector, tmp_path / "x.onnx", "onnx", [random_image(3, (320, 416), 0)])
    assert proof.any_size and proof.any_batch and proof.other_size.size == (240, 278)


@pytest.mark.parametrize("family", ["RetinaNet", "ATSS"])
def test_the_file_finds_nothing_where_there_is_nothing(family, tmp_path):
    detector = trained(family)
    bright, black = random_image(3, (96, 128), 0), torch.zeros(3, 96, 128)

    def highest(image):
        """The threshold from which on nothing is found."""
        low, high = 0.0, 1.0
        for _ in range(30):
            detector.test_score_thresh = (low + high) / 2
            found = len(detect(detector, [image])[0])
            low, high = (detector.test_score_thresh, high) if found else (low, detector.test_score_thresh)
        return high

    (low, empty), (high, found) = sorted([(highest(bright), bright), (highest(black), black)], key=lambda x: x[0])
    detector.test_score_thresh = (low + high) / 2
    write_file(detector, tmp_path / "x.onnx", "onnx", [found])
    run = load_format("onnx", tmp_path / "x.onnx", DETECTIONS)
    assert run(empty[None])[3].tolist() == [0]
    assert run(torch.stack([empty, found, empty]))[3].tolist() == [0, len(detect(detector, [found])[0]), 0]


@pytest.mark.parametrize("family", ["RetinaNet", "GFL"])
def test_locations_are_all_of_them_in_detectron2s_order(family, tmp_path):
    detector = trained(family)
    proof = write_file(detector, tmp_path / "x.onnx", "onnx", [random_image(3, (64, 96), 0)], locations=True)
    assert proof.any_size and proof.any_batch
    model = onnx.load(tmp_path / "x.onnx")
    assert [x.name for x in model.graph.output] == ["boxes", "scores"]
    image = random_image(3, (64, 64), 5)
    boxes, scores = load_format("onnx", tmp_path / "x.onnx", ["boxes", "scores"])(image[None])
    locations = sum((64 // stride) ** 2 for stride in (8, 16, 32)) * detector.anchor_generator.num_anchors[0]
    assert boxes.shape == (1, locations, 4) and scores.shape == (1, locations, NUM_CLASSES)
    best = detect(detector, [image])[0][:1]
    place = int((scores[0] - best.scores).abs().amin(dim=1).argmin())
    assert scores[0, place].argmax() == best.pred_classes
    torch.testing.assert_close(boxes[0, place].clamp(0, 64), best.pred_boxes.tensor[0], atol=1e-3, rtol=0)


def test_an_onnx_file_says_what_it_takes_and_gives(fcos):
    path = fcos("--opset", "13", to="onnx")
    model = onnx.load(path)
    assert [x.version for x in model.opset_import if x.domain == ""] == [13]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("images", ["batch", 3, "height", "width"], "tensor(float)")
    shapes = {x.name: x.shape for x in session.get_outputs()}
    assert shapes == dict(boxes=["batch", 100, 4], scores=["batch", 100], classes=["batch", 100], counts=["batch"])
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["input_format"] == "BGR" and json.loads(notes["classes"]) == ["0", "1", "2"]
    assert [path.name for path in fcos.output.parent.iterdir()] == ["student.onnx"]


def test_it_runs_without_d2kd_and_detectron2(fcos, tmp_path):
    onnx_file, script = fcos(to="onnx"), fcos(to="torchscript")
    code = f"""
import sys, numpy
for name in ("detectron2", "d2kd"):
    sys.modules[name] = None
import onnxruntime
session = onnxruntime.InferenceSession({str(onnx_file)!r}, providers=["CPUExecutionProvider"])
images = numpy.random.default_rng(0).uniform(0, 255, (2, 3, 64, 96)).astype("float32")
found = session.run(None, {{"images": images}})
assert "torch" not in sys.modules
import torch, torchvision
again = torch.jit.load({str(script)!r})(torch.from_numpy(images))
print(found[3].tolist(), again[3].tolist())
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    counts, again = (json.loads(x) for x in re.findall(r"\[.*?\]", result.stdout))
    assert counts == again and len(counts) == 2 and min(counts) > 0


def test_the_channel_order_is_that_of_the_config(fcos):
    assert load_student(LazyConfig.load(str(fcos.config)), str(fcos.checkpoint)).input_format == "BGR"
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(fcos.config)), ["model.input_format=RGB"])
    student = load_student(cfg, str(fcos.checkpoint))
    assert student.input_format == "RGB" and not student.detector.training


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    with whole_file(tmp_path / "a" / "file") as partial:
        partial.write_text("new")
        assert not (tmp_path / "a" / "file").exists()
    assert (tmp_path / "a" / "file").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a" / "file") as partial:
        partial.write_text("newer")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    assert (tmp_path / "a" / "file").read_text() == "new"


DIFFERENT = """
import torch
from detectron2.config import LazyCall as L
from detectron2.modeling.meta_arch.fcos import FCOS
from tests.helpers import build_detector

class Head(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        for name, child in head.named_children():
            setattr(self, name, child)
        self.__dict__["plain"] = head

    def forward(self, features):
        logits, boxes, centerness = self.plain(features)
        if torch.jit.is_tracing():
            {change}
        return logits, boxes, centerness

def build():
    detector = build_detector(family="FCOS", seed=9)
    detector.head = Head(detector.head)
    return detector

model = L(build)()
"""


@pytest.mark.parametrize(
    "change, said",
    [
        ("boxes = [x + 1 for x in boxes]", r"is not the student, nothing was written; on 320x416: .* pixels in boxes"),
        ("logits = [x - 50 for x in logits]", r"\d+ detections of the student, 0 of the file"),
        ("raise KeyError('no tracing')", "FCOS cannot be traced, nothing was written: KeyError: 'no tracing'"),
    ],
)
def test_a_file_that_detects_something_else_is_not_written(fcos, change, said):
    fcos.config.write_text(DIFFERENT.format(change=change))
    with pytest.raises(ExportError, match=said):
        fcos(to="onnx")
    assert fcos.written() == []


@pytest.mark.parametrize("differs", [3, 4])
def test_each_image_of_a_batch_counts(tmp_path, monkeypatch, differs):
    """After the image twice and one of another size, a batch of two is compared."""
    calls = []

    def spoiled(expected, found):
        calls.append(expected.image_size)
        return compare(expected, found[:-1] if len(calls) == 1 + differs else found)

    monkeypatch.setattr("d2kd.export.files.compare", spoiled)
    proof = write_file(trained("FCOS"), tmp_path / "x", "torchscript", [random_image(3, (64, 64), 0)])
    assert proof.any_size and not proof.any_batch and len(calls) == 5


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_a_full_disk_is_said(tmp_path, kind):
    """By a limit on the size of a file; torch says that it failed, not why."""
    detector, before = trained("FCOS"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_file(detector, tmp_path / "x", kind, [random_image(3, (64, 64), 0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_difference_of_the_optimised_model_counts(fcos, monkeypatch):
    """TorchScript rewrites a model after its first run: the first comparison alone would prove little."""
    calls = []

    def drifting(expected, found):
        calls.append(expected.image_size)
        return compare(expected, found if len(calls) < 2 else found[:-1])

    monkeypatch.setattr("d2kd.export.files.compare", drifting)
    with pytest.raises(ExportError, match="is not the student"):
        fcos(to="torchscript")
    assert calls == [(320, 416)] * 2 and fcos.written() == []


@pytest.mark.parametrize(
    "change, said, batch",
    [
        ("logits = [x + 0 * torch.zeros(tuple(map(int, x.shape))) for x in logits]", "it fails on another size", True),
        ("logits = [x.view(1, *x.shape[1:]) for x in logits]", "", False),
        ("boxes = [x * (x.shape[3] / int(x.shape[3])) for x in boxes]", r"on 480x278: .* pixels in boxes", True),
    ],
)
def test_what_tracing_has_fixed_is_said(fcos, change, said, batch, capsys):
    fcos.config.write_text(DIFFERENT.format(change=change))
    fcos(to="torchscript")
    stated = capsys.readouterr().out
    assert bool(re.search(f"WARNING: only for images of 320x416 pixels; {said}", stated)) == bool(said), stated
    assert ("WARNING: only for one image at a time; it fails on two" in stated) != batch, stated
    assert fcos.written() == ["student.torchscript"]


def test_a_detector_of_another_family_is_refused_by_name(fcos):
    class Own(torch.nn.Module):
        pass

    with pytest.raises(ExportError, match="Own can be exported as weights only.*RetinaNet, FCOS, GFL, ATSS"):
        DetectionGraph(Own())


def test_without_detections_nothing_is_proved(fcos, tmp_path):
    Image.fromarray(np.zeros((40, 56, 3), "uint8")).save(tmp_path / "black.png")
    silent = "model.student.test_score_thresh=1.5"
    with pytest.raises(ExportError, match="detects nothing in random images.*--images PATH"):
        fcos(silent, to="onnx")
    with pytest.raises(ExportError, match=r"detects nothing in the 1 images to compare on \(40x56\)"):
        fcos("--images", tmp_path / "black.png", silent, to="onnx")
    assert fcos.written() == []
