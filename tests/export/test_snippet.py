"""The program in docs/deploying.md detects what the student does, with onnxruntime alone."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from d2kd.export import random_image, write_file
from d2kd.export.comparison import detect
from tests.helpers import build_detector

PAGE = Path(__file__).parents[2] / "docs/deploying.md"


def test_the_pages_program(tmp_path):
    detector = build_detector("FCOS", max_detections_per_image=9).eval()
    with torch.no_grad():
        detector.head.cls_score.weight *= 0.1
    image = random_image(3, (64, 96), 0)
    notes = {"input_format": "BGR", "classes": '["tern", "heron", "plover"]'}
    write_file(detector, tmp_path / "student.onnx", "onnx", [image], notes=notes)
    Image.fromarray(image.flip(0).permute(1, 2, 0).byte().numpy()).save(tmp_path / "photo.png")  # which is RGB
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    blocked = 'import sys\nfor name in ("torch", "detectron2", "d2kd"):\n    sys.modules[name] = None\n'
    (tmp_path / "detect.py").write_text(blocked + program)
    argv = [sys.executable, "detect.py", "student.onnx", "photo.png", "64"]
    result = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (expected,) = detect(detector, [image])
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == [("tern", "heron", "plover")[i] for i in expected.pred_classes]
    numbers = torch.tensor([[float(x) for x in values] for _, *values in lines])
    torch.testing.assert_close(numbers[:, 0], expected.scores, atol=6e-4, rtol=0)
    torch.testing.assert_close(numbers[:, 1:], expected.pred_boxes.tensor, atol=6e-2, rtol=0)
