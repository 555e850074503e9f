"""The int8 file is smaller, finds nearly the same, and is refused where it does not."""

import os

import onnx
import pytest
import torch
from torchvision.ops import box_iou

from d2kd.export import DETECTIONS, ExportError, OnnxDetector, random_image, write_file, write_int8
from d2kd.export.comparison import detect
from d2kd.export.formats import load_format
from tests.helpers import build_detector


@pytest.fixture
def student():
    detector = build_detector("RetinaNet", width=16, max_detections_per_image=10).eval()
    with torch.no_grad():
        detector.head.cls_score.weight *= 0.1
    return detector


@pytest.fixture
def images():
    return [random_image(3, size, seed) for seed, size in enumerate([(96, 128), (64, 64), (80, 96)])]


def test_an_int8_file(student, images, tmp_path):
    plain, path = tmp_path / "x.onnx", tmp_path / "int8.onnx"
    write_file(student, plain, "onnx", images)
    share = write_int8(student, plain, path, images, images)
    assert 0.5 <= share < 1
    assert path.stat().st_size < 0.8 * plain.stat().st_size
    graph = onnx.load(path).graph
    values = {x.name: x for x in graph.initializer}
    weights = [x for x in values.values() if len(x.dims) == 4]
    assert weights and all(x.data_type == onnx.TensorProto.INT8 for x in weights)
    scales = {node.input[0]: values[node.input[1]].dims for node in graph.node if node.op_type == "DequantizeLinear"}
    assert all(list(scales[x.name]) == [x.dims[0]] for x in weights)  # a channel each
    boxes, scores, _, counts = load_format("onnx", path, DETECTIONS)(torch.stack([images[0]] * 2))
    assert (counts > 0).all() and torch.equal(boxes[0], boxes[1])
    expected = detect(student, images[:1])[0]
    assert abs(scores[0, 0] - expected.scores[0]) < 0.1


def test_one_that_finds_too_little_is_not_written(student, images, tmp_path):
    plain = tmp_path / "x.onnx"
    write_file(student, plain, "onnx", images)
    mean = student.pixel_mean.expand(3, 64, 64)  # normalised to 0: ranges that no image keeps to
    with pytest.raises(ExportError, match=r"finds \d+ of the student's 30 detections.*--int8 N"):
        write_int8(student, plain, tmp_path / "int8.onnx", images, [mean])
    assert os.listdir(tmp_path) == ["x.onnx"]


def test_found_is_what_has_the_class_and_the_place(student, images, tmp_path, monkeypatch):
    (expected,) = detect(student, images[:1])
    boxes, scores, classes = expected.pred_boxes.tensor.clone(), expected.scores, expected.pred_classes.clone()
    distinct = torch.ones(len(boxes), dtype=torch.bool)  # of which no other box is near
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    distinct &= ~((overlaps >= 0.4) & (classes[:, None] == classes)).any(dim=1)
    moved, renamed = distinct.nonzero().flatten()[:2].tolist()
    boxes[moved] += 1000
    classes[renamed] += 7
    monkeypatch.setattr("d2kd.export.files.quantize", lambda *args: None)
    found = [x[None] for x in (boxes, scores, classes, torch.tensor(len(boxes)))]
    monkeypatch.setattr("d2kd.export.files.load_format", lambda *args: lambda images: found)
    share = write_int8(student, tmp_path / "x.onnx", tmp_path / "int8.onnx", images[:1], [])
    assert share == (len(boxes) - 2) / len(boxes)


def test_an_onnx_file_is_a_detectron2_model(student, images, tmp_path):
    write_file(student, tmp_path / "x.onnx", "onnx", images)
    item = {"image": images[0].byte(), "height": 48, "width": 256}
    (found,) = OnnxDetector(tmp_path / "x.onnx")([item])
    with torch.no_grad():
        (expected,) = student([item])
    assert found["instances"].image_size == (48, 256) and len(expected["instances"]) > 0
    torch.testing.assert_close(
        found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor, atol=1e-3, rtol=0
    )
    with pytest.raises(ExportError, match="x.onnx fails on an image of 1x96x128: "):  # such as one of another size
        OnnxDetector(tmp_path / "x.onnx")([{"image": images[0][:1]}])


def test_other_files_are_refused(student, images, tmp_path):
    write_file(student, tmp_path / "x.onnx", "onnx", images, locations=True)
    with pytest.raises(ExportError, match="gives boxes, scores, expected images and boxes, scores, classes, counts"):
        OnnxDetector(tmp_path / "x.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="bad.onnx is no ONNX file that onnxruntime can run"):
        OnnxDetector(tmp_path / "bad.onnx")
    with pytest.raises(FileNotFoundError, match="There is no file .*absent.onnx"):
        OnnxDetector(tmp_path / "absent.onnx")
