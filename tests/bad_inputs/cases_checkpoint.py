"""Files given as checkpoints that are none, or none of this model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from detectron2.config import instantiate
from torch import Tensor

from tests.bad_inputs.case import BadInput
from tests.bad_inputs.runs import Arguments, resume, train, weights
from tests.bad_inputs.tiny import write_run
from tests.conversion.openmmlab import Spec, random_state
from tests.nodes import fcos, gfl, retinanet

__all__ = ["CASES"]

Write = Callable[[Path], object]

TEACHER = "d2kd train: model.teacher.checkpoint (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS): {folder}/"
FIRST = "d2kd train: train.init_checkpoint: x.pth "


class Code:
    """Its pickle calls a function when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made",)


def saves(make: Callable[[], object]) -> Write:
    return lambda path: torch.save(make(), path)


def has(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def half(path: Path) -> None:
    saves(lambda: {"model": weights(fcos())})(path)
    path.write_bytes(path.read_bytes()[:20000])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.load(path)["model"]["head.ctrness.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)


def npz(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in weights(fcos()).items()})


def changed(**tensors: Tensor) -> Callable[[], object]:
    return lambda: {"model": weights(fcos()) | {key.replace("__", "."): value for key, value in tensors.items()}}


def backbone() -> dict[str, Any]:
    return {"model": {key: value for key, value in weights(fcos()).items() if key.startswith("backbone.")}}


def openmmlab() -> dict[str, Any]:
    return {"meta": {"epoch": 12}, "state_dict": random_state(Spec("fcos", width=32))}


#: The student has a backbone of timm that starts from a file.
BACKBONE = """
from detectron2.config import LazyCall as L
from d2kd.modeling.backbones import TimmBackbone

model.student.backbone = L(TimmBackbone)(name="resnet18", channels=[8] * 4, out_indices=[2, 3], weights="x.pth")
"""
HTML = b"<!DOCTYPE html>\n<html>Sign in</html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
NAN = torch.full((3,), float("nan"))
TORCHVISION = {"conv1.weight": NAN, "layer1.0.conv1.weight": NAN, "fc.bias": NAN}


def teacher(given: str, write: Write, says: str, *overrides: str, name: str = "teacher.pth") -> BadInput:
    """The file of the teacher is another."""
    place = () if name == "teacher.pth" else (f"model.teacher.checkpoint={name}",)
    arguments = train(*place, *overrides, change=lambda folder: write(folder / name))
    return BadInput("Checkpoint", f"a teacher's checkpoint that is {given}", arguments, says)


def first(given: str, write: Write, says: str, name: str = "x.pth") -> BadInput:
    arguments = train(f"train.init_checkpoint={name}", change=lambda folder: write(folder / name))
    return BadInput("Checkpoint", f"`train.init_checkpoint` of {given}", arguments, says)


def evaluated(given: str, write: Write, says: str) -> BadInput:
    arguments = train(
        "train.init_checkpoint=x.pth", options=["--eval-only"], change=lambda folder: write(folder / "x.pth")
    )
    return BadInput("Checkpoint", f"`--eval-only` of {given}", arguments, says)


def exported(given: str, write: Write, says: str, name: str = "x.pth") -> BadInput:
    def arguments(folder: Path) -> list[str]:
        write(folder / name)
        return ["export", write_run(folder), name, "--output", "student.pth"]

    return BadInput("Checkpoint", f"`d2kd export` of {given}", arguments, says)


def converted(given: str, write: Write, says: str, *options: str) -> BadInput:
    def arguments(folder: Path) -> list[str]:
        write(folder / "x.pth")
        return ["convert", "x.pth", "out.pth", *(options or ("--detector", "fcos", "--depth", "18"))]

    return BadInput("Checkpoint", f"`d2kd convert` of {given}", arguments, says)


def resumed(given: str, arguments: Arguments, says: str) -> BadInput:
    return BadInput("Checkpoint", f"`--resume` {given}", arguments, says)


def nothing(path: Path) -> None:
    path.unlink(missing_ok=True)


def folder(path: Path) -> None:
    nothing(path)
    path.mkdir()


def of_another_optimizer(path: Path) -> None:
    with open(path / "mine.py", "a") as file:
        file.write("optimizer._target_ = 'torch.optim.AdamW'\ndel optimizer.momentum\n")


def of_another_family(path: Path) -> None:
    with open(path / "mine.py", "a") as file:
        file.write("from tests.nodes import gfl\nmodel = gfl()\n")


def damage_all(path: Path) -> None:
    for file in (path / "output").glob("*.pth"):
        file.write_bytes(file.read_bytes()[:1000])


def deeper(path: Path) -> None:
    torch.save(timm.create_model("resnet18", layers=(3, 2, 2, 2), channels=(8,) * 4).state_dict(), path)


CASES = [
    teacher(
        "not there",
        nothing,
        "d2kd train: model.teacher.checkpoint is '{folder}/teacher.pth', but there is no such file: train"
        " the teacher first or correct the path (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS).",
    ),
    teacher(
        "`null`",
        lambda path: None,
        "d2kd train: model.teacher.checkpoint is None, expected a path or URL: a teacher that is not "
        "loaded teaches nothing.",
        "model.teacher.checkpoint=null",
    ),
    teacher("empty", has(b""), TEACHER + "teacher.pth is empty."),
    teacher(
        "half a download",
        half,
        TEACHER + "teacher.pth is damaged: its 20000 bytes are no whole archive (File is not a zip file).",
    ),
    teacher(
        "changed in one bit",
        one_bit,
        TEACHER + "teacher.pth is damaged: its entry archive/data/92 is not what was written.",
    ),
    teacher(
        "a web page", has(HTML), TEACHER + "teacher.pth is a web page (HTML): its address did not answer with the file."
    ),
    teacher(
        "a Git LFS pointer",
        has(LFS),
        TEACHER + "teacher.pth is a Git LFS pointer, not the file that it stands for: run git lfs pull.",
    ),
    teacher(
        "an npz",
        npz,
        TEACHER + "teacher.pth is an archive of numpy arrays (npz): save the detector's weights alone, "
        "torch.save({'model': detector.state_dict()}, FILE).",
    ),
    teacher(
        "a compressed file",
        has(b"\x1f\x8b\x08\x00" + bytes(99)),
        TEACHER + "teacher.pth is a compressed file (gzip): save the detector's weights alone, torch.save({'model':"
        " detector.state_dict()}, FILE).",
    ),
    teacher(
        "a safetensors file",
        has(b"\x08" + bytes(7) + b'{"a": 1}' + bytes(8)),
        TEACHER + "teacher.pth is a safetensors file: save the detector's weights alone, torch.save({'model': "
        "detector.state_dict()}, FILE).",
    ),
    teacher("a folder", folder, TEACHER + "teacher.pth is a folder, expected a file."),
    teacher(
        "a config",
        has(b"model = 3\n"),
        "d2kd train: model.teacher.checkpoint (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS): "
        "teacher.py is a config by its name, expected a checkpoint, such as a .pth.",
        name="teacher.py",
    ),
    teacher(
        "in a bucket",
        lambda path: None,
        "d2kd train: model.teacher.checkpoint (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS): "
        "s3://mine/teacher.pth cannot be read: Detectron2 knows no s3:// here; give the path of a copy.",
        "model.teacher.checkpoint=s3://mine/teacher.pth",
    ),
    teacher(
        "a pickle that runs code",
        has(pickle.dumps({"model": {"a": Code()}})),
        "d2kd train: model.teacher.checkpoint (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS): "
        "teacher.pkl is a pickle that calls posix.mkdir, expected one of arrays alone: if you trust it, "
        "read it with pickle.load and write its weights with torch.save to a .pth.",
        name="teacher.pkl",
    ),
    teacher(
        "weights with an object beside them",
        saves(lambda: {"model": weights(fcos()), "log": Code()}),
        TEACHER + "teacher.pth holds posix.mkdir beside weights, which is read only by running what the file says: "
        "save the detector's weights alone, torch.save({'model': detector.state_dict()}, FILE).",
    ),
    teacher(
        "a whole module",
        saves(lambda: torch.nn.Sequential(torch.nn.ReLU())),
        TEACHER + "teacher.pth is a whole module (torch.nn.modules.activation.ReLU, "
        "torch.nn.modules.container.Sequential), which would run code when it is read: save the "
        "detector's weights alone, torch.save({'model': detector.state_dict()}, FILE).",
    ),
    teacher(
        "Lightning's",
        saves(lambda: {"state_dict": weights(fcos()), "pytorch-lightning_version": "2.1"}),
        TEACHER + "teacher.pth is a Lightning checkpoint, with its weights under 'state_dict': save the detector's "
        "weights alone, torch.save({'model': detector.state_dict()}, FILE).",
    ),
    teacher(
        "OpenMMLab's",
        saves(openmmlab),
        TEACHER + "teacher.pth is an OpenMMLab checkpoint: convert it, d2kd convert {folder}/teacher.pth "
        "converted.pth --detector fcos --depth 18.",
    ),
    teacher(
        "OpenMMLab's weights alone",
        saves(lambda: random_state(Spec("atss", depth=50))),
        TEACHER + "teacher.pth is an OpenMMLab checkpoint: convert it, d2kd convert {folder}/teacher.pth "
        "converted.pth --detector atss --depth 50.",
    ),
    teacher(
        "weights under `state_dict`",
        saves(lambda: {"state_dict": weights(fcos())}),
        TEACHER + "teacher.pth has weights under 'state_dict', expected them under 'model': save the detector's "
        "weights alone, torch.save({'model': detector.state_dict()}, FILE).",
    ),
    teacher(
        "of a module around the detector",
        saves(lambda: {"model": {f"detector.{key}": value for key, value in weights(fcos()).items()}}),
        TEACHER + "teacher.pth is a checkpoint of a module that holds the detector, its keys begin with "
        "'detector.': save the detector's weights alone, torch.save({'model': detector.state_dict()}, "
        "FILE).",
    ),
    teacher(
        "a ResNet of torchvision",
        saves(lambda: TORCHVISION),
        TEACHER + "teacher.pth is a ResNet in torchvision's names, a backbone alone: give a checkpoint of the whole"
        " detector.",
    ),
    teacher(
        "a backbone alone",
        saves(backbone),
        TEACHER + "teacher.pth is a backbone alone, without the 14 tensors of a head: give a checkpoint of the "
        "whole detector.",
    ),
    teacher(
        "of a two-stage detector",
        saves(lambda: {"model": {"roi_heads.box_head.fc1.weight": NAN}}),
        TEACHER + "teacher.pth is a checkpoint of a two-stage detector (R-CNN), expected one of a dense detector.",
    ),
    teacher(
        "of another family",
        saves(lambda: {"model": weights(gfl())}),
        "d2kd train: The teacher's checkpoint does not fit the teacher's model; check that "
        "model.teacher.checkpoint was trained with model.teacher.model (in a yacs config: TEACHER_WEIGHTS"
        " with TEACHER_CONFIG of MODEL.DISTILLATION): missing, 2: head.ctrness.weight, head.ctrness.bias;"
        " unexpected, 3: head.scales.0.scale, head.scales.1.scale, head.scales.2.scale; shape mismatch, "
        "2: head.bbox_pred.weight (checkpoint (20, 8, 3, 3), model (4, 8, 3, 3)), head.bbox_pred.bias "
        "(checkpoint (20,), model (4,)).",
    ),
    teacher(
        "of other classes",
        saves(lambda: {"model": weights(fcos(num_classes=4))}),
        TEACHER + "teacher.pth is a checkpoint of a detector with another number of classes: head.cls_score.weight "
        "(checkpoint (4, 8, 3, 3), model (3, 8, 3, 3)), head.cls_score.bias (checkpoint (4,), model "
        "(3,)); set num_classes, or give the checkpoint that was trained with this config.",
    ),
    teacher(
        "of another size",
        saves(lambda: {"model": weights(fcos(**{"backbone.width": 8}))}),
        TEACHER + "teacher.pth is a checkpoint of a detector in another size, 48 tensors differ: "
        "backbone.fpn_lateral3.weight (checkpoint (8, 16, 1, 1), model (8, 8, 1, 1)), "
        "backbone.fpn_lateral4.weight (checkpoint (8, 32, 1, 1), model (8, 16, 1, 1)), "
        "backbone.top_block.conv.weight (checkpoint (8, 32, 3, 3), model (8, 16, 3, 3)) and 45 more; give"
        " the checkpoint that was trained with this config.",
    ),
    teacher(
        "the student's",
        saves(lambda: {"model": weights(fcos()) | {"distillation.positives_per_image": NAN}}),
        TEACHER + "teacher.pth is a checkpoint of a distilled run or its baseline, so of a student, in another "
        "size, 11 tensors differ: head.cls_subnet.0.weight (checkpoint (8, 8, 3, 3), model (16, 8, 3, "
        "3)), head.cls_subnet.0.bias (checkpoint (8,), model (16,)), head.cls_subnet.2.weight (checkpoint"
        " (8, 8, 3, 3), model (16, 16, 3, 3)) and 8 more; give the checkpoint that was trained with this "
        "config.",
        "model.teacher.model.head.conv_dims=[16,16]",
    ),
    teacher(
        "an optimizer's state",
        saves(lambda: {"optimizer": {"state": {}}, "iteration": 3}),
        TEACHER + "teacher.pth has an optimizer's state and no weights: give the checkpoint that was saved with it.",
    ),
    teacher(
        "numbers",
        saves(lambda: {"epoch": 1, "loss": 2.0}),
        TEACHER + "teacher.pth has no weights: its entries epoch, loss are no arrays.",
    ),
    teacher(
        "of int8",
        saves(changed(head__cls_score__weight=torch.zeros(3, 8, 3, 3, dtype=torch.int8))),
        TEACHER + "teacher.pth has weights of integers (int8), 1, such as head.cls_score.weight, expected floating "
        "point: give the checkpoint from before it was quantised.",
    ),
    teacher(
        "of NaN",
        saves(changed(head__cls_score__bias=NAN)),
        TEACHER + "teacher.pth has weights that are not finite, 1: head.cls_score.bias; give another checkpoint.",
    ),
    teacher(
        "of other pixel statistics",
        saves(changed(pixel_mean=torch.zeros(3, 1, 1))),
        "d2kd train: {folder}/teacher.pth was trained with pixel_mean [0.0, 0.0, 0.0], but "
        "model.teacher.model.pixel_mean is [103.53, 116.28, 123.675]: take the former (in a yacs config: "
        "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD of the teacher's own file).",
    ),
    teacher(
        "without the averages that are asked for",
        lambda path: None,
        "d2kd train: {folder}/teacher.pth has no weights 'ema', only 'model': change "
        "model.teacher.weights (in a yacs config: MODEL.DISTILLATION.TEACHER_WEIGHTS_ENTRY).",
        "model.teacher.weights=ema",
    ),
    first(
        "a file that is not there", nothing, "d2kd train: train.init_checkpoint is 'x.pth', but there is no such file."
    ),
    first("a folder", folder, "d2kd train: train.init_checkpoint is 'x.pth', which is a folder, expected a file."),
    first("a web page", has(HTML), FIRST + "is a web page (HTML): its address did not answer with the file."),
    first(
        "half a download", half, FIRST + "is damaged: its 20000 bytes are no whole archive (File is not a zip file)."
    ),
    first(
        "weights under `state_dict`",
        saves(lambda: {"state_dict": weights(fcos())}),
        FIRST + "has weights under 'state_dict', expected them under 'model': save the detector's weights alone, "
        "torch.save({'model': detector.state_dict()}, FILE).",
    ),
    first(
        "a ResNet of torchvision",
        saves(lambda: TORCHVISION),
        "d2kd train: train.init_checkpoint=x.pth has none of the model's 81 weights: missing, 81: "
        "backbone.fpn_lateral3.weight, backbone.fpn_lateral3.norm.weight, backbone.fpn_lateral3.norm.bias"
        " and 78 more; unexpected, 3: conv1.weight, layer1.0.conv1.weight, fc.bias.",
    ),
    first(
        "NaN",
        saves(changed(head__cls_score__bias=NAN)),
        FIRST + "has weights that are not finite, 1: head.cls_score.bias; give another checkpoint.",
    ),
    BadInput(
        "Checkpoint",
        "`--eval-only` without weights",
        train(options=["--eval-only"]),
        "d2kd train: train.init_checkpoint is empty, expected the weights to evaluate: add "
        "train.init_checkpoint=PATH, or --resume for the last checkpoint in "
        "train.output_dir={folder}/output.",
    ),
    evaluated(
        "a Git LFS pointer",
        has(LFS),
        FIRST + "is a Git LFS pointer, not the file that it stands for: run git lfs pull.",
    ),
    evaluated(
        "a backbone alone",
        saves(backbone),
        FIRST + "is a backbone alone, without the 14 tensors of a head: give a checkpoint of the whole detector; "
        "--allow-partial evaluates it all the same, with random values for what it lacks.",
    ),
    evaluated(
        "another family",
        saves(lambda: {"model": weights(retinanet())}),
        "d2kd train: x.pth is no complete checkpoint of the model: missing, 2: head.ctrness.weight, "
        "head.ctrness.bias; shape mismatch, 4: head.cls_score.weight (checkpoint (6, 8, 3, 3), model (3, "
        "8, 3, 3)), head.cls_score.bias (checkpoint (6,), model (3,)), head.bbox_pred.weight (checkpoint "
        "(8, 8, 3, 3), model (4, 8, 3, 3)) and 1 more; --allow-partial evaluates it all the same, with "
        "random values for what it lacks.",
    ),
    evaluated(
        "other classes",
        saves(lambda: {"model": weights(fcos(num_classes=4))}),
        FIRST + "is a checkpoint of a detector with another number of classes: head.cls_score.weight (checkpoint "
        "(4, 8, 3, 3), model (3, 8, 3, 3)), head.cls_score.bias (checkpoint (4,), model (3,)); set "
        "num_classes, or give the checkpoint that was trained with this config; --allow-partial evaluates"
        " it all the same, with random values for what it lacks.",
    ),
    evaluated(
        "other tensors",
        saves(lambda: {"model": {"a": NAN}}),
        "d2kd train: x.pth is no complete checkpoint of the model: missing, 81: "
        "backbone.fpn_lateral3.weight, backbone.fpn_lateral3.norm.weight, backbone.fpn_lateral3.norm.bias"
        " and 78 more; unexpected, 1: a; --allow-partial evaluates it all the same, with random values "
        "for what it lacks.",
    ),
    evaluated(
        "OpenMMLab's checkpoint",
        saves(openmmlab),
        FIRST + "is an OpenMMLab checkpoint: convert it, d2kd convert x.pth converted.pth --detector fcos --depth 18.",
    ),
    exported("a file that is not there", nothing, "d2kd export: The checkpoint is 'x.pth', but there is no such file."),
    exported("a folder", folder, "d2kd export: x.pth is a folder, expected a file."),
    exported(
        "a config",
        has(b"model = 3\n"),
        "d2kd export: mine.py is a config by its name, expected a checkpoint, such as a .pth.",
        name="mine.py",
    ),
    exported(
        "half a download",
        half,
        "d2kd export: x.pth is damaged: its 20000 bytes are no whole archive (File is not a zip file).",
    ),
    exported(
        "another family",
        saves(lambda: {"model": weights(retinanet())}),
        "d2kd export: x.pth is no checkpoint of this config's student (FCOS): missing, 2: "
        "head.ctrness.weight, head.ctrness.bias; shape mismatch, 4: head.cls_score.weight (checkpoint (6,"
        " 8, 3, 3), model (3, 8, 3, 3)), head.cls_score.bias (checkpoint (6,), model (3,)), "
        "head.bbox_pred.weight (checkpoint (8, 8, 3, 3), model (4, 8, 3, 3)) and 1 more; --allow-partial "
        "exports it with random values for what it lacks.",
    ),
    exported(
        "a whole module",
        saves(lambda: instantiate(fcos())),
        "d2kd export: x.pth is a whole module (torch.nn.modules.activation.ReLU, "
        "torch.nn.modules.batchnorm.BatchNorm2d, torch.nn.modules.container.Sequential and 1 more), which"
        " would run code when it is read: save the detector's weights alone, torch.save({'model': "
        "detector.state_dict()}, FILE).",
    ),
    converted("a file that is not there", nothing, "d2kd convert: x.pth: no such file."),
    converted(
        "a web page", has(HTML), "d2kd convert: x.pth is a web page (HTML): its address did not answer with the file."
    ),
    converted(
        "half a download",
        half,
        "d2kd convert: x.pth is damaged: its 20000 bytes are no whole archive (File is not a zip file).",
    ),
    converted(
        "an npz",
        npz,
        "d2kd convert: x.pth is an archive of numpy arrays (npz): save the detector's weights alone, "
        "torch.save({'model': detector.state_dict()}, FILE).",
    ),
    converted(
        "a checkpoint of Detectron2",
        saves(lambda: {"model": weights(fcos())}),
        "d2kd convert: x.pth has its weights under 'model', as Detectron2 keeps them: it needs no conversion.",
    ),
    converted(
        "a file that holds objects",
        saves(lambda: {"state_dict": {"a": NAN}, "log": Code()}),
        "d2kd convert: x.pth needs posix.mkdir, which is more than weights (files of MMDetection 3 carry "
        "their logs). Reading it runs code of the file: if you trust where it came from, add "
        "--trust-pickle.",
    ),
    converted(
        "a ResNet of torchvision",
        saves(lambda: TORCHVISION),
        "d2kd convert: --detector is fcos, but the file lacks bbox_head.conv_cls.weight, "
        "bbox_head.conv_reg.weight, bbox_head.conv_centerness.weight, and is of no other family that is "
        "converted; it has conv1.weight, fc.bias, layer1.0.",
    ),
    converted(
        "another depth",
        saves(openmmlab),
        "d2kd convert: --depth is 50, but the file's backbone is a ResNet-18: correct it.",
        "--detector",
        "fcos",
        "--depth",
        "50",
    ),
    converted(
        "another family",
        saves(openmmlab),
        "d2kd convert: --detector is gfl, but the file lacks bbox_head.gfl_cls.weight, "
        "bbox_head.gfl_reg.weight; it has the predictors of --detector fcos.",
        "--detector",
        "gfl",
        "--depth",
        "18",
    ),
    resumed(
        "with another backbone",
        resume(lambda folder: None, "model.student.backbone.width=8"),
        "d2kd train: --resume cannot go on: the checkpoint is of another model (shape mismatch, 48: "
        "backbone.fpn_lateral3.weight (checkpoint (8, 8, 1, 1), model (8, 16, 1, 1)), "
        "backbone.fpn_lateral4.weight (checkpoint (8, 16, 1, 1), model (8, 32, 1, 1)), "
        "backbone.top_block.conv.weight (checkpoint (8, 16, 3, 3), model (8, 32, 3, 3)) and 45 more). "
        "Either restore the config that the run was trained with (config.yaml of train.output_dir), or "
        "start anew from its weights: without --resume, with train.init_checkpoint=CHECKPOINT and another"
        " train.output_dir.",
    ),
    resumed(
        "with another family",
        resume(of_another_family),
        "d2kd train: --resume cannot go on: the checkpoint is of another model (missing, 3: "
        "head.scales.0.scale, head.scales.1.scale, head.scales.2.scale; unexpected, 2: "
        "head.ctrness.weight, head.ctrness.bias; shape mismatch, 2: head.bbox_pred.weight (checkpoint (4,"
        " 8, 3, 3), model (20, 8, 3, 3)), head.bbox_pred.bias (checkpoint (4,), model (20,))). Either "
        "restore the config that the run was trained with (config.yaml of train.output_dir), or start "
        "anew from its weights: without --resume, with train.init_checkpoint=CHECKPOINT and another "
        "train.output_dir.",
    ),
    resumed(
        "with another optimizer",
        resume(of_another_optimizer),
        "d2kd train: --resume cannot go on: the checkpoint's optimizer is of another kind than this "
        "run's, its state has no 'step'. Either restore the config that the run was trained with "
        "(config.yaml of train.output_dir), or start anew from its weights: without --resume, with "
        "train.init_checkpoint=CHECKPOINT and another train.output_dir.",
    ),
    resumed(
        "of a run all of whose checkpoints are damaged",
        resume(damage_all),
        "d2kd train: --resume: No checkpoint in {folder}/output can be continued from: "
        "{folder}/output/model_final.pth is damaged: its 1000 bytes are no whole archive (File is not a "
        "zip file). To start anew, use another train.output_dir, or leave --resume out.",
    ),
    resumed(
        "of weights that were put into the run's folder",
        resume(lambda folder: (folder / "output/model_final.pth").write_bytes((folder / "teacher.pth").read_bytes())),
        "d2kd train: --resume: {folder}/output/model_final.pth has weights and no state of the trainer, "
        "so that no run can go on from it: train.init_checkpoint begins a new run with its weights, "
        "without --resume.",
    ),
    BadInput(
        "Checkpoint",
        "a checkpoint as `--config-file`",
        lambda folder: [*train()(folder)[:2], "teacher.pth"],
        "d2kd train: teacher.pth is no config, expected a LazyConfig: a .py, or a .yaml that was dumped of one.",
    ),
    BadInput(
        "Checkpoint",
        "a checkpoint as the teacher's config",
        train(
            more="import d2kd\nmodel = d2kd.distill(model.student, teacher='teacher.pth', "
            "teacher_checkpoint='teacher.pth', method='bckd')\n"
        ),
        "d2kd train: distill()'s teacher is 'teacher.pth', expected a yacs config (.yaml) or a LazyConfig"
        " (.py, or a dumped .yaml).",
    ),
    BadInput(
        "Checkpoint",
        "`weights` of a `TimmBackbone` that are a deeper network's",
        train(more=BACKBONE, change=lambda folder: deeper(folder / "x.pth")),
        "d2kd train: TimmBackbone: 12 weights in x.pth are of no layer of resnet18: layer1.2.conv1.weight, "
        "layer1.2.bn1.weight, layer1.2.bn1.bias, layer1.2.bn1.running_mean, layer1.2.bn1.running_var and 7 more. "
        "Expected timm's weights of the same network.",
    ),
]
