"""tools/export_student.py: the student's weights alone, and what it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image

import d2kd
from d2kd.cli import export as tool
from d2kd.export import ExportError, random_image
from tests.distilled_run import PLAIN, Run
from tests.helpers import FAMILIES, build_detector
from tests.yacs_projects import ABSENT, TINY, assert_same_tensors, plain, save, wrapped, write_config

ROOT = Path(tool.__file__).resolve().parents[2]


@pytest.fixture
def fcos(tmp_path):
    return Run(tmp_path, "FCOS")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_detector_loads_it_completely(family, tmp_path, capsys):
    run = Run(tmp_path, family)
    trained = set(run.model.state_dict())
    assert {*run.kept, "distillation.loss_normalizer_0"} <= trained
    run()
    content = torch.load(run.output, weights_only=True)
    assert list(content) == ["model"]

    stock = build_detector(family, seed=4)
    assert list(content["model"]) == list(stock.state_dict())
    checkpointer, said = DetectionCheckpointer(stock), []
    checkpointer._log_incompatible_keys = said.append
    checkpointer.load(str(run.output))
    assert not (said[0].missing_keys or said[0].unexpected_keys or said[0].incorrect_shapes)
    for name, value in stock.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name
    assert not torch.equal(stock.head.cls_score.weight, build_detector(family, seed=9).head.cls_score.weight)

    stated = capsys.readouterr().out
    parameters = sum(p.numel() for p in stock.parameters())
    size = run.output.stat().st_size
    assert f"{len(stock.state_dict())} tensors, {parameters} parameters, {size} bytes" in stated
    assert run.written() == ["student.pth"]
    for key in [*run.kept, "distillation.loss_normalizer_0"]:
        assert key in stated
    assert "left out of the model, 5:" in stated and "left out beside the model: iteration, optimizer" in stated


def test_it_compares_on_the_images_given(fcos, tmp_path, capsys):
    pictures = [random_image(3, size, 3).permute(1, 2, 0).byte().numpy() for size in ((72, 100), (64, 64))]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, picture in zip(paths, pictures):
        Image.fromarray(picture).save(path)
    seen = []
    detector_class = type(d2kd.student(fcos.model))
    preprocess = detector_class.preprocess_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            detector_class, "preprocess_image", lambda self, x: seen.append(x[0]["image"]) or preprocess(self, x)
        )
        fcos("--images", *paths, "model.student.max_detections_per_image=7", to="torchscript")
    stated = capsys.readouterr().out
    assert "compared on 2 given images; the worst on " in stated and ": 7 detections" in stated
    assert "compared in another size, on 108x67: " in stated and "compared in a batch, on 72x100: " in stated
    for picture in pictures:
        pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
        assert any(x.shape == pixels.shape and torch.equal(x, pixels.flip(0)) for x in seen)  # BGR
    assert {tuple(x.shape) for x in seen} == {(3, 72, 100), (3, 64, 64), (3, 108, 67)}


@pytest.mark.parametrize("data, named", [("", "no dataloader.test"), ("absent", "absent.json")])
def test_without_data_it_compares_on_a_random_image_and_says_why(fcos, data, named, capsys):
    if data:
        with open(fcos.config, "a") as file:
            file.write(DATA.format(name="absent", folder=fcos.folder))
    fcos(to="torchscript")
    stated = capsys.readouterr().out
    assert re.search(rf"compared on a random image, since there are no others \(.*{named}.*\)", stated), stated


DATA = """
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances

if "{name}" not in DatasetCatalog.list():
    register_coco_instances("{name}", dict(), "{folder}/{name}.json", "{folder}")
dataloader = dict(
    train=dict(dataset=L(get_detection_dataset_dicts)(names="{name}", filter_empty=False)),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="{name}", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False, augmentations=[L(T.ResizeShortestEdge)(short_edge_length=64)], image_format="BGR"
        ),
        num_workers=0,
    ),
)
"""


def test_overrides_reach_the_model(fcos, capsys):
    fcos("model.losses=null", "model.student.test_topk_candidates=2", "model.student.max_detections_per_image=3")
    assert "left out of the model, 5:" in capsys.readouterr().out
    file = fcos("--overwrite", "model.student.max_detections_per_image=3", to="torchscript")
    assert torch.jit.load(file)(random_image(3, (96, 96), 0)[None])[0].shape == (1, 3, 4)


def test_a_plain_run_can_be_exported(tmp_path):
    run = Run(tmp_path, "GFL")
    run.config.write_text(PLAIN.format(family="GFL"))
    run()
    assert list(torch.load(run.output)["model"]) == list(build_detector("GFL").state_dict())


# ---- what is refused ---------------------------------------------------------------------------------------------


def _resize(weights):
    weights["head.ctrness.bias"] = torch.zeros(7)


@pytest.mark.parametrize(
    "edit, named",
    [
        (lambda w: w.pop("head.ctrness.bias"), "missing, 1: head.ctrness.bias"),
        (lambda w: w.update({"head.other": torch.zeros(1)}), "unexpected, 1: head.other"),
        (lambda w: w.update({"head.distillation.x": torch.zeros(1)}), "unexpected, 1: head.distillation.x"),
        (_resize, "shape mismatch, 1: head.ctrness.bias (checkpoint (7,), model (1,))"),
    ],
    ids=["missing", "unexpected", "not distillation's", "mismatched"],
)
@pytest.mark.parametrize("to", ["weights", "onnx"])
def test_a_checkpoint_that_does_not_fit_is_refused(fcos, edit, named, to):
    fcos.change(edit)
    with pytest.raises(ExportError) as error:
        fcos(to=to)
    assert named in str(error.value) and "no checkpoint of this config's student (FCOS)" in str(error.value)
    assert fcos.written() == []


def test_a_checkpoint_that_does_not_fit_is_exported_on_purpose(fcos, capsys):
    fcos.change(lambda weights: weights.pop("head.ctrness.bias"))
    fcos("--allow-partial")
    assert "WARNING: the checkpoint does not fit the student (--allow-partial): missing, 1: head.ctrness.bias" in (
        capsys.readouterr().out
    )
    assert "head.ctrness.bias" in torch.load(fcos.output)["model"]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02]q\x00."], ids=["empty", "text", "a pickled list"])
def test_what_is_no_checkpoint_is_refused(fcos, content):
    fcos.checkpoint.write_bytes(content)
    with pytest.raises(ExportError, match=r"model.pth"):
        fcos()
    assert fcos.written() == []


def test_a_missing_checkpoint_is_named(fcos):
    fcos.checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match=r"The checkpoint is '.*model.pth', but there is no such file"):
        fcos()


def test_a_config_of_something_else_is_refused(fcos):
    fcos.config.write_text("from detectron2.config import LazyCall as L\nfrom torch.nn import ReLU\nmodel = L(ReLU)()")
    with pytest.raises(ExportError, match="model cannot be exported.* given a ReLU, expected a DistilledDetector"):
        fcos()
    fcos.config.write_text("data = dict(a=1)\n")
    with pytest.raises(ValueError, match="has no model, expected a LazyConfig"):
        fcos()


def test_an_existing_output_stays_unless_told(fcos):
    fcos.output.parent.mkdir()
    fcos.output.write_bytes(b"old")
    with pytest.raises(ExportError, match="student.pth exists: add --overwrite"):
        fcos()
    assert fcos.output.read_bytes() == b"old"
    fcos("--overwrite")
    assert "model" in torch.load(fcos.output)


def test_outputs_that_would_destroy_something_are_refused(fcos, tmp_path):
    def refused(message, *argv):
        with pytest.raises(ExportError, match=message):
            options = ["--overwrite", "--output", *map(str, argv)]
            tool.run(tool.parse_args([str(fcos.config), str(fcos.checkpoint), *options]))

    before = fcos.checkpoint.read_bytes()
    refused("is what is read: give it another name", fcos.checkpoint)
    refused("is what is read: give it another name", fcos.config, "--to", "onnx")
    refused("ends in .pth", tmp_path / "student.pkl")
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    refused("is a folder", folder)
    assert fcos.checkpoint.read_bytes() == before and fcos.written() == []


def test_a_failure_while_writing_leaves_what_was_there(fcos, monkeypatch):
    fcos()
    before = fcos.output.read_bytes()

    def fail(content, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        fcos("--overwrite")
    assert fcos.output.read_bytes() == before and fcos.written() == ["student.pth"]


def test_the_command_line_says_errors_without_a_traceback(fcos, tmp_path):
    fcos.change(lambda weights: weights.pop("head.ctrness.bias"))
    argv = [str(ROOT / "tools" / "export_student.py"), fcos.config, fcos.checkpoint, "--output", fcos.output]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("d2kd export: ") and "missing, 1: head.ctrness.bias" in result.stderr
    assert fcos.written() == []


@pytest.mark.parametrize(
    "more, message",
    [
        (["--images", "x.png"], "--images and --locations are for --to torchscript, onnx, exported_program"),
        (["--locations"], "--images and --locations are for --to torchscript, onnx, exported_program"),
        (["--to", "torchscript", "--opset", "17"], "--opset is for --to onnx"),
        (["--to", "onnx", "--opset", "9"], "--opset is 9, expected 13 to 20"),
        (["--yacs", "a=1"], "with --yacs there are no overrides"),
        (["what"], "'what' is no key=value override"),
    ],
)
def test_command_lines_that_mean_nothing(more, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["run.py", "model.pth", "--output", "x.pth", *more])
    assert message in capsys.readouterr().err


def test_overrides_may_come_last_or_first():
    for argv in (
        ["c.py", "m.pth", "--output", "x.pth", "a=1", "b=2"],
        ["c.py", "m.pth", "a=1", "b=2", "--output", "x.pth"],
        ["c.py", "m.pth", "--output", "x.onnx", "--to", "onnx", "--images", "x.png", "a=1", "b=2"],
    ):
        args = tool.parse_args(argv)
        assert (args.config, args.checkpoint, args.overrides) == ("c.py", "m.pth", ["a=1", "b=2"])


def test_help_says_what_the_file_takes(capsys):
    with pytest.raises(SystemExit) as stop:
        tool.parse_args(["--help"])
    assert stop.value.code == 0
    assert "does not resize" in capsys.readouterr().out


def test_a_config_that_is_not_there_is_named(fcos):
    fcos.config.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*run.py', and d2kd has no config of that name"):
        fcos()


def test_the_student_of_a_yacs_run(tmp_path, capsys):
    options = [*TINY, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.005]
    config = write_config(wrapped(options, METHOD="bckd", **ABSENT), tmp_path / "config.yaml")
    model = build_model(plain(options))
    checkpoint = save(model, tmp_path, "model_final")
    tool.main([config, checkpoint, "--yacs", "--output", str(tmp_path / "student.pth")])
    written = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    assert_same_tensors(written, model.state_dict())
    assert tool.main([config, checkpoint, "--yacs", "--output", str(tmp_path / "x.ts"), "--to", "torchscript"]) == 0
    stated = capsys.readouterr().out
    assert "compared on a random image" in stated and "BGR" in stated


def test_a_yacs_config_that_names_code_is_not_run(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("MODEL: !!python/object/apply:os.mkdir [made]\n")
    argv = [str(tmp_path / "config.yaml"), "x.pth", "--yacs", "--output", str(tmp_path / "student.pth")]
    assert tool.main(argv) == 2
    assert "d2kd export: CONFIG" in capsys.readouterr().err
    assert not (tmp_path / "student.pth").exists() and not os.path.exists("made")
