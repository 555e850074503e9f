"""A traced student is written if it detects the same, and not otherwise."""

import json
import re
import subprocess
import sys

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2kd.checkpoint import whole_file
from d2kd.export import ExportError, load_student
from d2kd.export.torchscript import compare, random_image, write_torchscript
from tests.distilled_run import Run
from tests.helpers import FAMILIES, build_detector


@pytest.fixture
def fcos(tmp_path):
    return Run(tmp_path, "FCOS")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_traced_model_finds_nothing_where_there_is_nothing(family, tmp_path):
    detector = build_detector(family).eval()
    with torch.no_grad():
        detector.head.cls_score.weight *= 0.1  # no scores of exactly 1
    bright, black = random_image(3, (96, 128), 0), torch.zeros(3, 96, 128)

    def scores(image):
        return detector([{"image": image}])[0]["instances"].scores

    def highest(image):
        """The threshold from which on nothing is found."""
        low, high = 0.0, 1.0
        for _ in range(30):
            detector.test_score_thresh = (low + high) / 2
            low, high = (detector.test_score_thresh, high) if len(scores(image)) else (low, detector.test_score_thresh)
        return high

    (low, empty), (high, found) = sorted([(highest(bright), bright), (highest(black), black)], key=lambda x: x[0])
    detector.test_score_thresh = (low + high) / 2
    assert len(scores(found)) and not len(scores(empty))
    proof = write_torchscript(detector, tmp_path / "x.ts", found)
    assert proof.image.same and proof.image.found == len(scores(found))
    boxes, classes, found_scores, _ = torch.jit.load(tmp_path / "x.ts")(empty)
    assert boxes.shape == (0, 4) and classes.shape == found_scores.shape == (0,)


def test_it_runs_without_d2kd_and_detectron2(fcos, tmp_path):
    fcos(script=True)
    code = f"""
import sys, torch, torchvision
for name in ("detectron2", "d2kd"):
    sys.modules[name] = None
traced = torch.jit.load({str(fcos.script)!r})
print([len(x) for x in traced(torch.rand(3, 64, 96) * 255)])
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts[0] == counts[1] == counts[2] > 0 and counts[3] == 2


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


def detections(boxes, scores, classes):
    found = Instances((32, 32))
    found.pred_boxes, found.scores = Boxes(torch.tensor(boxes)), torch.tensor(scores)
    found.pred_classes = torch.tensor(classes)
    return found


BASE = ([[0.0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 30, 30]], [0.9, 0.5, 0.5], [0, 1, 1])


def test_equal_scores_may_stand_in_any_order_and_others_not():
    same = compare(detections(*BASE), detections(*([part[i] for i in (0, 2, 1)] for part in BASE)))
    assert same.same and same.box == 0 and (same.expected, same.found, same.size) == (3, 3, (32, 32))
    boxes, scores, classes = BASE
    swapped = compare(detections(*BASE), detections([boxes[1], boxes[0], boxes[2]], scores, classes))
    assert not swapped.same and swapped.box == 4.0


@pytest.mark.parametrize(
    "part, value, said",
    [
        (0, [0.0, 0, 5, 5.5], "0.5 pixels in boxes, 0 in scores, 0 of"),
        (0, [0.0, 0, 5, float("nan")], "nan pixels in boxes"),
        (1, 0.875, "0 pixels in boxes, 0.025 in scores, 0 of"),
        (1, float("nan"), "nan in scores"),
        (2, 2, "0 pixels in boxes, 0 in scores, 1 of"),
    ],
)
def test_a_difference_is_measured(part, value, said):
    parts = [list(x) for x in BASE]
    parts[part][0] = value
    comparison = compare(detections(*BASE), detections(*parts))
    assert not comparison.same and said in str(comparison)


def test_another_number_of_detections_is_a_difference():
    fewer = detections(*(part[:2] for part in BASE))
    comparison = compare(detections(*BASE), fewer)
    assert not comparison.same and "3 detections of the student, 2 of the traced model" in str(comparison)


DIFFERENT = """
import torch
from detectron2.config import LazyCall as L
from detectron2.modeling.meta_arch.fcos import FCOS
from tests.helpers import build_detector

class Different(FCOS):
    def forward_inference(self, images, features, predictions):
        found = super().forward_inference(images, features, predictions)
        if torch.jit.is_tracing():
            {change}
        return found

model = L(build_detector)(family="FCOS", detector_class=Different)
"""


@pytest.mark.parametrize(
    "change, said",
    [
        ("found[0].pred_boxes.tensor[:, 0] -= 3.0", r"is not the student, nothing was written; on 320x416: .* 3 pix"),
        ("found[0].scores = found[0].scores * 0.5", r"is not the student.*, 0.\d+ in scores"),
        ("found[0] = found[0][found[0].scores > 2]", r"\d+ detections of the student, 0 of the traced model"),
        ("raise KeyError('no tracing')", "Different cannot be traced, nothing was written: KeyError: 'no tracing'"),
    ],
)
def test_a_traced_model_that_detects_something_else_is_not_written(fcos, change, said):
    fcos.config.write_text(DIFFERENT.format(change=change))
    with pytest.raises(ExportError, match=said):
        fcos(script=True)
    assert fcos.written() == []


def test_a_difference_of_the_optimised_model_counts(fcos, monkeypatch):
    """TorchScript rewrites a model after its first run: the first comparison alone would prove little."""
    calls = []

    def drifting(expected, found):
        calls.append(expected.image_size)
        return compare(expected, found if len(calls) < 3 else found[:-1])

    monkeypatch.setattr("d2kd.export.torchscript.compare", drifting)
    with pytest.raises(ExportError, match="is not the student"):
        fcos(script=True)
    assert calls == [(320, 416), (240, 278), (320, 416)] and fcos.written() == []


@pytest.mark.parametrize(
    "change, said",
    [
        ("found[0].scores += 0 * (features[0] + torch.zeros(tuple(map(int, features[0].shape)))).sum()", "it fails"),
        (
            "found[0].pred_boxes.tensor[:, 0] += (416 - images.image_sizes[0][1]) / 100",
            "on 240x278: .* 1.38 pixels in boxes",
        ),
    ],
)
def test_a_size_that_tracing_has_fixed_is_said(fcos, change, said, capsys):
    fcos.config.write_text(DIFFERENT.format(change=change))
    fcos(script=True)
    stated = capsys.readouterr().out
    assert re.search(f"WARNING: only for images of 320x416 pixels; {said}", stated), stated
    assert fcos.written() == ["student.pth", "student.ts"]


@pytest.mark.parametrize("options, said", [([], "in random images"), (["--image"], "in this image of 40x56")])
def test_without_detections_nothing_is_proved(fcos, tmp_path, options, said):
    Image.new("RGB", (56, 40)).save(tmp_path / "black.png")
    options = [*options, *([tmp_path / "black.png"] if options else [])]
    with pytest.raises(ExportError, match=f"detects nothing {said}.*image"):
        fcos(*options, "model.student.test_score_thresh=1.5", script=True)
    assert fcos.written() == []
