"""``d2kd export`` in other formats than weights, and ``d2kd analyze``."""

import json
from pathlib import Path

import onnx

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.cases_command import case
from tests.bad_inputs.tiny import write_run


def cut_image(folder: Path) -> None:
    """``cut.png`` ends early."""
    write_run(folder)
    (folder / "cut.png").write_bytes((folder / "images/0.png").read_bytes()[:3000])


def file_of_another(folder: Path) -> None:
    """``other.onnx`` takes and returns what an exported file does, and says that it is of another detector."""
    write_run(folder)
    names = ("boxes", "scores", "classes", "counts")
    images, *outputs = (onnx.helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, None) for x in ("images", *names))
    nodes = [onnx.helper.make_node("Identity", ["images"], [x]) for x in names]
    graph = onnx.helper.make_graph(nodes, "other", [images], outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"input_format": "RGB", "classes": json.dumps(["car", "bus"])})
    onnx.save(model, str(folder / "other.onnx"))


CASES: list[BadInput] = [
    case(
        "`d2kd export --to onnx` with an image that is none",
        "export mine.py teacher.pth --output student.onnx --to onnx --images birds.json",
        "d2kd export: --images birds.json is no image that Pillow reads.",
    ),
    case(
        "`d2kd export --to onnx` with an image that is cut off",
        "export mine.py teacher.pth --output student.onnx --to onnx --images cut.png",
        "d2kd export: --images cut.png cannot be read: image file is truncated.",
        cut_image,
    ),
    case(
        "`d2kd analyze --onnx` a file of another detector",
        "analyze mine.py --onnx other.onnx",
        "d2kd analyze: other.onnx is of a detector of 2 classes for RGB images, but the config's student has 3 classes "
        "and takes BGR images: analyze it with its own config.",
        file_of_another,
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
