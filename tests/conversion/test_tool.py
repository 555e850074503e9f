"""tools/convert_mmdet_checkpoint.py: what it reads, what it trusts, and that it writes all or nothing."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import d2kd.cli.convert as tool
from d2kd.conversion import ConversionError, read_checkpoint
from tests.conversion.openmmlab import Spec, config, random_state

ROOT = Path(__file__).parents[2]
SMALL = Spec("gfl", width=32)


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "in.pth")


def save(path, spec=SMALL, change=lambda content: None, **kwargs):
    """A file as MMDetection 2 writes it."""
    content = {"meta": {"epoch": 12, "CLASSES": ("a", "b", "c")}, "state_dict": random_state(spec), "optimizer": {}}
    change(content)
    torch.save(content, path, **kwargs)
    return path


def call(file, output, *options, detector="gfl", depth=18):
    argv = [str(file), str(output), "--detector", detector, "--depth", str(depth), *options]
    tool.run(tool.argument_parser().parse_args(argv))


def read(path):
    return torch.load(path, weights_only=True)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_it_writes_a_detectron2_checkpoint_and_says_what_it_did(tmp_path, capsys, zipped):
    file = save(tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    output = tmp_path / "folder" / "out.pth"
    call(file, output)
    written = read(output)
    assert written.keys() == {"model", "__author__"}
    said = capsys.readouterr().out
    for line in (
        "GFL, ResNet-18 (pytorch style), FPN of 32 channels, P6 from P5, 3 classes, distances in 17 bins",
        f"Placed: {len(written['model'])} tensors",
        "Dropped: 1\n",
        "constant: the distances 0 to 16 (bbox_head.integral.project)",
        "configs/common/models/gfl.py with\n",
        "  model.backbone.bottom_up.stages.depth = 18\n",
        "Its images (pytorch style: the file does not say, see --style)\n"
        "  input_format = 'RGB'\n  pixel_mean = [123.675, 116.28, 103.53]\n  pixel_std = [58.395, 57.12, 57.375]\n",
        "since this one does not say: the backbone's style, pixel statistics, anchors\n",
        f"Wrote {output}",
    ):
        assert line in said
    assert leftovers(output.parent) == ["out.pth"]


@pytest.mark.parametrize("version", [2, 3])
def test_what_the_file_says_reaches_the_conversion(tmp_path, capsys, version):
    spec = Spec("atss", width=32, scales=(4, 1), stds=(1.0, 1.0, 0.5, 0.5), pixels=(True, (1.0, 2.0, 3.0), (4.0,) * 3))

    def change(content):
        content["meta"]["config" if version == 2 else "cfg"] = config(spec, version)

    call(save(tmp_path / "in.pth", spec, change), tmp_path / "out.pth", detector="atss")
    said = capsys.readouterr().out
    for line in (
        "  model.anchor_generator.sizes = [[32.0], [64.0], [128.0], [256.0], [512.0]]\n",
        "  model.box2box_transform.weights = [1.0, 1.0, 2.0, 2.0]\n",
        "  model.input_format = 'BGR'\n",
        "Its images (as its config says)\n  input_format = 'BGR'\n  pixel_mean = [1.0, 2.0, 3.0]\n",
    ):
        assert line in said
    assert "Assumed" not in said


def test_what_the_file_says_is_refused_by_name(tmp_path):
    def change(content):
        content["meta"] |= {"mmdet_version": "1.0rc1", "config": "model = dict(type='RetinaNet')"}

    file = save(tmp_path / "in.pth", Spec("retinanet", width=32), change)
    with pytest.raises(ConversionError, match=r"version 1 of MMDetection \(meta.mmdet_version='1.0rc1'\)"):
        call(file, tmp_path / "out.pth", detector="retinanet")
    assert leftovers(tmp_path) == ["in.pth"]


def test_it_lists_every_tensor_on_demand(file, tmp_path, capsys):
    call(file, tmp_path / "out.pth", "--keys")
    said = capsys.readouterr().out
    assert "  head.cls_subnet.9.weight <- bbox_head.cls_convs.3.conv.weight\n" in said
    assert "  bbox_head.integral.project: constant" in said


def test_a_bare_state_dict_will_do(tmp_path):
    torch.save(random_state(SMALL), tmp_path / "in.pth")
    call(tmp_path / "in.pth", tmp_path / "out.pth")
    assert read(tmp_path / "out.pth")["model"]


@pytest.mark.parametrize(
    "options, found",
    [
        (["--style", "pytorch"], "input_format = 'RGB'"),
        ([], "input_format = 'BGR'"),
        (["--centerness-on-reg"], "model.head.centerness_on = 'box'"),
        (["--norm-on-bbox"], "model.box2box_transform.normalize_by_size = True"),
        (["--p6-from", "p5"], "P6 from P5"),
    ],
)
def test_options_reach_the_conversion(tmp_path, capsys, options, found):
    file = save(tmp_path / "in.pth", Spec("fcos", width=32))
    call(file, tmp_path / "out.pth", *options, detector="fcos")
    assert found in capsys.readouterr().out


def test_averaged_weights_are_taken_on_demand(tmp_path):
    def change(content):
        weights = content["state_dict"]
        del weights["bbox_head.integral.project"]
        weights |= {f"ema_{key.replace('.', '_')}": value + 1 for key, value in weights.items()}

    file = save(tmp_path / "in.pth", change=change)
    call(file, tmp_path / "plain.pth")
    call(file, tmp_path / "ema.pth", "--ema")
    plain, ema = (read(tmp_path / name)["model"]["head.cls_score.bias"] for name in ("plain.pth", "ema.pth"))
    assert torch.equal(ema, plain + 1)


# Nothing half-written


def test_what_does_not_convert_leaves_nothing(tmp_path):
    file = save(tmp_path / "in.pth", change=lambda content: content["state_dict"].update(extra=torch.zeros(1)))
    with pytest.raises(ConversionError, match="neither placed nor dropped, 1: extra"):
        call(file, tmp_path / "folder" / "out.pth")
    assert leftovers(tmp_path) == ["in.pth"]


def test_a_write_that_fails_leaves_nothing(file, tmp_path, monkeypatch):
    output = tmp_path / "out.pth"

    def full_disk(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    output.write_bytes(b"before")
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        call(file, output, "--force")
    assert output.read_bytes() == b"before"
    assert leftovers(tmp_path) == ["in.pth", "out.pth"]


def test_an_existing_output_is_replaced_only_on_demand(file, tmp_path):
    output = tmp_path / "out.pth"
    output.write_bytes(b"before")
    with pytest.raises(ConversionError, match="exists: add --force"):
        call(file, output)
    assert output.read_bytes() == b"before"
    call(file, output, "--force")
    assert read(output)["model"]


def test_the_input_is_never_replaced(file, tmp_path):
    before = file.read_bytes()
    (tmp_path / "link.pth").symlink_to(file)
    for output in (file, tmp_path / "link.pth"):
        with pytest.raises(ConversionError, match="is the input"):
            call(file, output, "--force")
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["out.pkl", "out.pyth", "out"])
def test_names_that_detectron2_would_read_otherwise(file, tmp_path, name):
    with pytest.raises(ConversionError, match="ends in .pth"):
        call(file, tmp_path / name)


def test_a_folder_is_no_output(file, tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ConversionError, match="is a folder"):
        call(file, tmp_path / "folder.pth", "--force")


# What is read


class Harmful:
    """Its pickle makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_runs_code_is_refused_and_named(tmp_path):
    file = save(tmp_path / "in.pth", change=lambda content: content.update(log=Harmful(tmp_path / "made")))
    with pytest.raises(ConversionError, match=r"mkdir.*--trust-pickle"):
        call(file, tmp_path / "out.pth")
    assert leftovers(tmp_path) == ["in.pth"]
    call(file, tmp_path / "out.pth", "--trust-pickle")
    assert leftovers(tmp_path) == ["in.pth", "made", "out.pth"]


@pytest.fixture
def with_logs(tmp_path, monkeypatch):
    """A file as MMDetection 3 writes it, read where mmengine is not installed."""
    module = types.ModuleType("absent_engine.logging")

    class History:
        def __init__(self, values=()):
            self.values = list(values)

    class Values(list):
        pass

    class Table(dict):
        pass

    def save_with_logs(path, **kwargs):
        with monkeypatch.context() as patch:
            for kind in (History, Values, Table):
                kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
                patch.setattr(module, kind.__name__, kind, raising=False)
            patch.setitem(sys.modules, "absent_engine", types.ModuleType("absent_engine"))
            patch.setitem(sys.modules, module.__name__, module)
            hub = {"loss": History([1, 2]), "lr": Values([0.1]), "table": Table(a=1)}
            return save(path, change=lambda content: content.update(message_hub=hub), **kwargs)

    return save_with_logs


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_logs_beside_the_weights_need_trust_but_not_their_package(with_logs, tmp_path, zipped):
    file = with_logs(tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConversionError, match=r"absent_engine\.logging\.History.*--trust-pickle"):
        call(file, tmp_path / "out.pth")
    assert leftovers(tmp_path) == ["in.pth"]
    call(file, tmp_path / "out.pth", "--trust-pickle")
    expected = save(tmp_path / "plain.pth")
    call(expected, tmp_path / "plain_out.pth")
    one, other = read(tmp_path / "out.pth")["model"], read(tmp_path / "plain_out.pth")["model"]
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="in.pth: no such file"):
        call(tmp_path / "in.pth", tmp_path / "out.pth")


@pytest.mark.parametrize(
    "content, named",
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is a web page"),
        (b"\x80\x02.", "is damaged: it has only 3 bytes"),
        (b"\x80\x02.....", "is no checkpoint that torch.load reads"),
    ],
    ids=["empty", "html", "bytes", "pickle"],
)
def test_no_checkpoint(tmp_path, content, named):
    (tmp_path / "in.pth").write_bytes(content)
    for options in ([], ["--trust-pickle"]):
        with pytest.raises(ConversionError, match=f"in.pth {named}"):
            call(tmp_path / "in.pth", tmp_path / "out.pth", *options)


def test_half_a_download(file, tmp_path):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConversionError, match="in.pth is damaged"):
        call(file, tmp_path / "out.pth")


@pytest.mark.parametrize(
    "content, named",
    [
        ({"model": {"a": torch.zeros(1)}}, "under 'model', as Detectron2 keeps them: it needs no conversion"),
        ([1, 2], "a list"),
        ({"state_dict": {}}, "the keys state_dict"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "no tensors: b"),
    ],
)
def test_no_weights_in_it(tmp_path, content, named):
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(ConversionError, match=named):
        read_checkpoint(tmp_path / "in.pth")


def test_the_command_line_names_the_error_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "tools/convert_mmdet_checkpoint.py"), "absent.pth", "out.pth"]
    run = subprocess.run([*command, "--detector", "gfl", "--depth", "18"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert "absent.pth: no such file" in run.stderr and "Traceback" not in run.stderr
