"""Files that are no teacher's checkpoint: each is named as what it is, and none runs code."""

import os
import pickle
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn

from d2kd.checkpoint import DamagedError, LayoutError, WholeCheckpointer
from d2kd.export import ExportError, load_student
from d2kd.modeling.distillation.teacher import Teacher
from tests.conversion.openmmlab import Spec, random_state
from tests.helpers import build_detector, distilled, make_batch, run_step

KEY = "model.teacher.checkpoint (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS): "


def refusal(path, **kwargs):
    teacher = Teacher(build_detector("FCOS", **kwargs), str(path), engine="eager")
    with pytest.raises((DamagedError, LayoutError)) as error:
        teacher.load(torch.device("cpu"), torch.float32)
    message = str(error.value)
    assert message.startswith(KEY) and str(path) in message and "\n" not in message and len(message) < 600
    return message.removeprefix(KEY)


def weights(**kwargs):
    return build_detector("FCOS", **kwargs).state_dict()


def loads(path):
    teacher = Teacher(build_detector("FCOS"), str(path), engine="eager")
    teacher.load(torch.device("cpu"), torch.float32)
    return teacher.detector.state_dict()


# Files of another format, by their bytes

BYTES = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html>\n<html>sign in</html>", "is a web page (HTML)"),
    "an old page": (b"  <HTML><body>404", "is a web page (HTML)"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(99), "is a compressed file (gzip)"),
    "safetensors": (b"\x08" + bytes(7) + b'{"a": 1}' + bytes(8), "is a safetensors file"),
    "text": (b"hello, world", "is damaged, or no checkpoint ("),
    "a few bytes": (b"PK", "has only 2 bytes"),
}


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("content, named", BYTES.values(), ids=BYTES)
def test_other_bytes(tmp_path, content, named, suffix):
    path = tmp_path / f"teacher.{suffix}"
    path.write_bytes(content)
    assert named in refusal(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_half_a_download(tmp_path, zipped):
    path = tmp_path / "teacher.pth"
    torch.save({"model": weights()}, path, _use_new_zipfile_serialization=zipped)
    assert loads(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged" in refusal(path)


def test_half_a_pickle(tmp_path):
    path = tmp_path / "teacher.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(1000)}, "__author__": "x"})[:4000])
    assert "is damaged, or no checkpoint (" in refusal(path)


def test_numpys_formats(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "npy.pth")
    assert "is a numpy array (npy): save the detector's weights alone" in refusal(tmp_path / "npy.pth")
    with open(tmp_path / "npz.pth", "wb") as file:
        np.savez(file, **{key: value.numpy() for key, value in weights().items()})
    assert "is an archive of numpy arrays (npz): save" in refusal(tmp_path / "npz.pth")


def test_a_torchscript_model(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "teacher.pth")
    assert "is a TorchScript model: save" in refusal(tmp_path / "teacher.pth")


# Other contents


def moved(prefix):
    return {prefix + key: value for key, value in weights().items()}


def openmmlab(family):
    return {"meta": {"epoch": 12}, "state_dict": random_state(Spec(family, width=32)), "optimizer": {}}


def changed(**tensors):
    return {"model": weights() | {key.replace("__", "."): value for key, value in tensors.items()}}


NAN = torch.full((3,), float("nan"))
CONTENTS = {
    "openmmlab gfl": (lambda: openmmlab("gfl"), "is an OpenMMLab checkpoint: convert it, d2kd convert"),
    "openmmlab fcos": (lambda: openmmlab("fcos"), "teacher.pth converted.pth --detector fcos --depth 18."),
    "openmmlab bare": (lambda: random_state(Spec("atss", depth=50)), "--detector atss --depth 50."),
    "openmmlab two-stage": (
        lambda: {"state_dict": {"roi_head.bbox_head.fc_cls.weight": NAN}},
        "--detector NAME --depth N.",
    ),
    "lightning": (
        lambda: {"state_dict": moved("model."), "pytorch-lightning_version": "2.1", "optimizer_states": []},
        "is a Lightning checkpoint, with its weights under 'state_dict': save",
    ),
    "nested": (lambda: {"state_dict": weights(), "epoch": 3}, "has weights under 'state_dict', expected them under 'm"),
    "nested twice": (lambda: {"model": {"state_dict": weights()}}, "has weights under 'state_dict'"),
    "another name": (lambda: {"net": weights(), "optimizer": {}}, "has weights under 'net'"),
    "a module's": (lambda: {"model": moved("detector.")}, "its keys begin with 'detector.': save"),
    "compiled": (lambda: {"model": moved("_orig_mod.")}, "its keys begin with '_orig_mod.': save"),
    "torchvision": (
        lambda: {"conv1.weight": NAN, "layer1.0.conv1.weight": NAN, "fc.bias": NAN},
        "is a ResNet in torchvision's names, a backbone alone: give",
    ),
    "two-stage": (lambda: {"model": {"roi_heads.box_head.fc1.weight": NAN}}, "of a two-stage detector (R-CNN)"),
    "backbone only": (
        lambda: {"model": {key: value for key, value in weights().items() if key.startswith("backbone.")}},
        "is a backbone alone, without the ",
    ),
    "bare backbone": (lambda: build_detector("FCOS").backbone.bottom_up.state_dict(), "is a backbone alone, without"),
    "another width": (
        lambda: {"model": weights(width=8, fpn=16)},
        "is a checkpoint of a detector in another size, ",
    ),
    "optimizer": (lambda: torch.optim.SGD([nn.Parameter(NAN)], lr=1).state_dict(), "has an optimizer's state and no"),
    "optimizer beside nothing": (lambda: {"optimizer": {"state": {}}, "iteration": 3}, "has an optimizer's state and"),
    "nothing": (lambda: {}, "has no weights: its entries (none)"),
    "numbers": (lambda: {"a": 1, "b": 2}, "has no weights: its entries a, b are no arrays"),
    "a list": (lambda: [NAN], "holds a list, expected a mapping"),
    "a tensor": (lambda: NAN, "holds a Tensor, expected a mapping"),
    "int8": (
        lambda: changed(head__cls_score__weight=torch.zeros(3, 8, 3, 3, dtype=torch.int8)),
        "has weights of integers (int8), 1, such as head.cls_score.weight, expected floating point",
    ),
    "quantised": (
        lambda: changed(
            head__cls_score__weight=torch.quantize_per_tensor(torch.zeros(3, 8, 3, 3), 0.1, 0, torch.qint8)
        ),
        "has weights of integers (int8), 1, such as head.cls_score.weight",
    ),
    "nan": (lambda: changed(head__cls_score__bias=NAN), "weights that are not finite, 1: head.cls_score.bias"),
    "infinite": (lambda: changed(head__cls_score__bias=-NAN.new_full((3,), torch.inf)), "not finite, 1: head.cls"),
    "nan statistics": (
        lambda: changed(backbone__bottom_up__stem__conv1__norm__running_var=torch.full((4,), torch.nan)),
        "not finite, 1: backbone.bottom_up.stem.conv1.norm.running_var",
    ),
}


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("make, named", CONTENTS.values(), ids=CONTENTS)
def test_other_contents(tmp_path, make, named):
    torch.save(make(), tmp_path / "teacher.pth")
    assert named in refusal(tmp_path / "teacher.pth")


def test_a_students_file(tmp_path):
    student = distilled(build_detector("FCOS"), build_detector("FCOS", width=8), "bckd")
    run_step(student, make_batch())
    DetectionCheckpointer(student, str(tmp_path)).save("student")
    message = refusal(tmp_path / "student.pth", width=8, conv_dims=[16, 16])
    assert "is a checkpoint of a distilled run or its baseline, so of a student, in another size" in message
    assert "(checkpoint (8, 16, 3, 3), model (8, 32, 3, 3))" in message
    assert loads(tmp_path / "student.pth")  # a student of the teacher's size may teach


def test_bare_weights_are_read(tmp_path):
    torch.save(weights(seed=3), tmp_path / "teacher.pth")
    torch.save({"model": moved("module.")}, tmp_path / "parallel.pth")
    assert torch.equal(loads(tmp_path / "teacher.pth")["head.ctrness.weight"], weights(seed=3)["head.ctrness.weight"])
    assert loads(tmp_path / "parallel.pth")


# Files that would run code


class Harmful:
    """Its pickle makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def made(tmp_path):
    """A folder that is there if code was run."""
    yield tmp_path / "made"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_checkpoint_with_an_object(tmp_path, made, zipped):
    content = {"model": weights(), "log": Harmful(made)}
    torch.save(content, tmp_path / "teacher.pth", _use_new_zipfile_serialization=zipped)
    assert "mkdir beside weights, which is read only by running what the file says" in refusal(tmp_path / "teacher.pth")


@pytest.mark.parametrize("suffix", ["pyth", "pth", "pkl"])
def test_a_pickle_with_an_object(tmp_path, made, suffix):
    path = tmp_path / f"teacher.{suffix}"
    path.write_bytes(pickle.dumps({"model": {"a": Harmful(made)}, "__author__": "x"}, protocol=2))
    assert "posix.mkdir" in refusal(path)


def test_a_pickle_with_an_object_inside_of_a_tensor(tmp_path, made):
    """torch's own reader of storages inside of pickles runs what they name."""

    class Storage:
        def __reduce__(self):
            content = tmp_path / "inner"
            torch.save(Harmful(made), content)
            return torch.storage._load_from_bytes, (content.read_bytes(),)

    (tmp_path / "teacher.pkl").write_bytes(pickle.dumps({"model": {"a": Storage()}}))
    assert "holds posix.mkdir beside weights" in refusal(tmp_path / "teacher.pkl")


def test_a_pickle_with_an_object_elsewhere(tmp_path, made):
    """A run's first weights and a student to export are read by the same reader."""
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": Harmful(made), "__author__": "x"}))
    with pytest.raises(LayoutError, match=r"x.pkl is a pickle that calls posix.mkdir, expected one of arrays alone"):
        WholeCheckpointer(build_detector("FCOS")).resume_or_load(str(path), resume=False)
    cfg = OmegaConf.create({"model": L(build_detector)(family="FCOS")}, flags={"allow_objects": True})
    with pytest.raises(ExportError, match=r"x.pkl is a pickle that calls posix.mkdir"):
        load_student(cfg, str(path))


def test_pickles_of_arrays_are_read(tmp_path):
    for name, convert in (("numpy", lambda x: x.numpy()), ("torch", lambda x: x), ("parameter", nn.Parameter)):
        state = {key: convert(value) for key, value in weights(seed=3).items() if value.is_floating_point()}
        for protocol in (2, 5):
            (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "x"}, protocol))
            assert torch.equal(
                loads(tmp_path / f"{name}.pkl")["head.ctrness.bias"], weights(seed=3)["head.ctrness.bias"]
            )


@pytest.mark.parametrize("source", ["detectron2://a/x.pkl", "https://dl.fbaipublicfiles.com/detectron2/a/x.pkl"])
def test_a_download_that_stands_where_detectron2s_would(tmp_path, made, monkeypatch, source):
    """Its cache does not keep hosts apart."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "detectron2/a").mkdir(parents=True)
    path = tmp_path / "detectron2/a/x.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Harmful(made)}, "__author__": "x"}))
    with pytest.raises(LayoutError, match=f"is a pickle that calls posix.mkdir.* The download of {source} is not kept"):
        WholeCheckpointer(build_detector("FCOS")).load(source)
    assert not path.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_whole_module(tmp_path, zipped):
    torch.save(build_detector("FCOS"), tmp_path / "teacher.pth", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "teacher.pth")
    assert "is a whole module (" in message if zipped else "FCOS" in message
    torch.save({"model": build_detector("FCOS")}, tmp_path / "nested.pth")
    assert "is a whole module (" in refusal(tmp_path / "nested.pth")


@pytest.mark.parametrize(
    "module, named",
    [
        ("mmengine.logging.history_buffer", "is an OpenMMLab checkpoint: d2kd convert"),
        ("lightning_fabric.utilities.data", "is a Lightning checkpoint with objects of lightning_fabric.utilities.da"),
    ],
)
def test_objects_of_other_toolkits(tmp_path, monkeypatch, module, named):
    class Log:
        pass

    Log.__module__, Log.__qualname__ = module, "Log"
    with monkeypatch.context() as patch:
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            patch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        sys.modules[module].Log = Log
        torch.save({"state_dict": weights(), "message_hub": Log()}, tmp_path / "teacher.pth")
    assert named in refusal(tmp_path / "teacher.pth")


# Downloads


@pytest.mark.parametrize("kind", ["html", "half", "harmful"])
def test_a_bad_download_is_not_kept(server, made, tmp_path, kind):
    served, url = tmp_path / "served" / "teacher.pth", f"{server}/teacher.pth"
    torch.save({"model": weights()}, served)
    whole = served.read_bytes()
    served.write_bytes(
        {"html": b"<html>busy</html>", "half": whole[:9000], "harmful": pickle.dumps(Harmful(made))}[kind]
    )
    teacher = Teacher(build_detector("FCOS"), url, engine="eager")
    with pytest.raises((DamagedError, LayoutError), match=f"The download of {url} is not kept: correct the URL, or"):
        teacher.load(torch.device("cpu"), torch.float32)
    assert not (tmp_path / "cache" / "teacher.pth").exists()
    served.write_bytes(whole)
    assert loads(url)


def test_a_download_of_another_layout_is_kept(server, tmp_path):
    torch.save({"model": weights(width=8, fpn=16)}, tmp_path / "served" / "teacher.pth")
    assert "in another size" in refusal(f"{server}/teacher.pth")
    assert (tmp_path / "cache" / "teacher.pth").exists()


def test_a_file_that_is_no_download_is_never_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "teacher.pth").write_bytes(b"")
    refusal(tmp_path / "teacher.pth")
    assert (tmp_path / "teacher.pth").exists()


def test_a_url_that_does_not_answer(server):
    with pytest.raises(
        FileNotFoundError, match=r"model.teacher.checkpoint .*: http.*a.pth cannot be downloaded \(HTTP Error 404"
    ):
        loads(f"{server}/a.pth")
