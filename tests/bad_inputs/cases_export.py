"""``d2kd export`` in other formats than weights, and ``d2kd analyze``."""

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.cases_command import case

CASES: list[BadInput] = [
    case(
        "`d2kd export --to onnx` with an image that is none",
        "export mine.py teacher.pth --output student.onnx --to onnx --images birds.json",
        "d2kd export: --images birds.json is no image that Pillow reads.",
    ),
    case(
        "`d2kd export --to` an unknown format",
        "export mine.py teacher.pth --output student.tflite --to tflite",
        "d2kd export: argument --to: tflite is none of weights, torchscript, onnx, exported_program "
        "(d2kd export --help).",
    ),
    case(
        "`d2kd export --images` of weights",
        "export mine.py teacher.pth --output student.pth --images images/0.png",
        "d2kd export: --images and --locations are for --to torchscript, onnx, exported_program (d2kd export --help).",
    ),
    case(
        "`d2kd export --opset` that torch does not write",
        "export mine.py teacher.pth --output student.onnx --to onnx --opset 9",
        "d2kd export: --opset is 9, expected 13 to 20 (d2kd export --help).",
    ),
    case(
        "`d2kd export --yacs` with an override",
        "export config.yaml teacher.pth --yacs --output student.pth model.student.test_score_thresh=0.3",
        "d2kd export: with --yacs there are no overrides: change the file (d2kd export --help).",
    ),
    case(
        "`d2kd export --yacs` of a config that is not there",
        "export config.yaml teacher.pth --yacs --output student.pth",
        "d2kd export: CONFIG is 'config.yaml', but there is no such file.",
    ),
]
