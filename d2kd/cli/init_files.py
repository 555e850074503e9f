"""The text of the configs that `d2kd init` writes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from d2kd.cli.init_backbones import Backbone
from d2kd.cli.init_choices import Choices
from d2kd.cli.init_data_file import comment, data_file, path_text
from d2kd.methods import get_losses

__all__ = ["DETECTORS", "Project", "TrainedTeacher", "config_files"]

#: Detector -> the class whose preset a method has.
DETECTORS = {"gfl": "GFL", "fcos": "FCOS", "retinanet": "RetinaNet", "atss": "ATSS"}
#: What the lines of a config may name, and where it is.
_MODULES = {
    "BasicStem": "detectron2.modeling.backbone",
    "ResNet": "detectron2.modeling.backbone",
    "LastLevelMaxPool": "detectron2.modeling.backbone.fpn",
    "P6P7": "d2kd.modeling.backbones",
    "TimmBackbone": "d2kd.modeling.backbones",
    "efficientnet_lite_weights": "d2kd.modeling.backbones",
}
#: Which boxes a level is for, by detector.
_LEVELS = {
    "gfl": "Each has anchors of 8 times its stride, and boxes of about that size",
    "atss": "Each has anchors of 8 times its stride, and boxes of about that size",
    "retinanet": "Each answers for boxes of about 4 to 8 times its stride",
    "fcos": "Each answers for boxes of about 8 to 16 times its stride",
}
_BLOCKS = 2  # of the heads of configs/common/models/*_timm.py


@dataclass(frozen=True)
class TrainedTeacher:
    """
    A teacher that is there.

    Attributes:
        config: a LazyConfig or yacs file.
        input_format: the order of its channels; None: its detector knows.
    """

    config: Path
    checkpoint: Path
    input_format: str | None


@dataclass(frozen=True)
class Project:
    """
    What the command line asks for.

    Attributes:
        data: images and annotations of "train" and "val".
        difficult: whether objects of val are marked so.
    """

    folder: Path
    format: str
    data: dict[str, tuple[Path, Path]]
    classes: list[str]
    difficult: bool
    detector: str
    method: str
    student: Backbone
    teacher: Backbone | TrainedTeacher


def config_files(project: Project, choices: Choices) -> dict[str, str]:
    """File name -> text: ``data.py``, ``teacher.py`` (without a trained teacher) and ``student.py``."""
    text = data_file(project.folder, project.format, project.data, project.classes, project.difficult, choices)
    files = {"data.py": text}
    if isinstance(project.teacher, Backbone):
        files["teacher.py"] = _teacher(project, choices, project.teacher)
    files["student.py"] = _student(project, choices)
    return files


def _teacher(project: Project, choices: Choices, teacher: Backbone) -> str:
    body = "\n".join([_detector(project, choices), _backbone(teacher), _training(teacher, "teacher")])
    return f'''"""The teacher of {project.folder.name}, trained on the labels alone."""

{_imports(body)}

from .data import _here, dataloader, lr_multiplier, optimizer, train

{body}
'''


def _student(project: Project, choices: Choices) -> str:
    student, teacher = project.student, project.teacher
    input_format = "RGB" if project.detector == "fcos" else None  # FCOS does not say itself
    if isinstance(teacher, TrainedTeacher):
        source, parts = teacher.config.name, [_detector(project, choices)]
        config, checkpoint = (_text(path, project.folder) for path in (teacher.config, teacher.checkpoint))
        shared = "from .data import _here, dataloader, lr_multiplier, optimizer, train"
        teachers_format = teacher.input_format
    else:
        source, config, checkpoint = "teacher.py", "_teacher", 'str(_here / "output/teacher/model_final.pth")'
        shared = "from .teacher import _here, dataloader, lr_multiplier, model, optimizer, train"
        teachers_format = input_format
        parts = ["_teacher = deepcopy(model)  # the student is the same detector, on another backbone"]
        if teacher.node_without_weights != teacher.node:
            parts += [
                "# Without its first weights: all weights are in the checkpoint.",
                f"_teacher.backbone.bottom_up = {_wrapped(teacher.node_without_weights)}",
            ]
    parts += [
        _backbone(student),
        "model = d2kd.distill(",
        "    model,",
        f"    teacher={config},",
        f"    teacher_checkpoint={checkpoint},",
        f'    method="{project.method}",  # d2kd methods lists the others',
        ")",
    ]
    for name, loss in get_losses(project.method, DETECTORS[project.detector]).items():
        if (loss.get("tail") or 0) >= _BLOCKS:
            parts.append(f"model.losses.{name}.tail = 1  # the heads have two blocks, the paper's four")
    if input_format:
        parts.append(f'model.input_format = "{input_format}"  # the order of the channels, which FCOS does not know')
    if teachers_format:
        parts.append(f'model.teacher.input_format = "{teachers_format}"')
    body = "\n".join([*parts, _training(student, "student")])
    return f'''"""The student of {project.folder.name}, distilled from {source}; model.losses=null trains it alone."""

{_imports(body)}

{shared}

{body}
'''


def _imports(body: str) -> str:
    """What the lines of a config need."""
    modules: dict[str, list[str]] = {"detectron2.config": ["LazyCall as L"]}
    for name, module in sorted(_MODULES.items()):
        if re.search(rf"\b{name}\(|\b{name}\)\(|\b{name}\.", body):
            modules.setdefault(module, []).append(name)
    lines = [f"from {module} import {', '.join(names)}" for module, names in sorted(modules.items())]
    standard = ["from copy import deepcopy", ""] if "deepcopy(" in body else []
    return "\n".join([*standard, "import d2kd", *lines])


def _detector(project: Project, choices: Choices) -> str:
    strides = choices.strides
    levels = [f"p{stride.bit_length() - 1}" for stride in strides]
    inputs = [f"res{stride.bit_length() - 1}" for stride in strides if stride <= 32]
    lines = [
        f"# {DETECTORS[project.detector]} with an FPN of 96 channels and heads of two blocks, the packaged config for "
        "small backbones.",
        f'model = d2kd.get_config("common/models/{project.detector}_timm.py").model',
        f"model.num_classes = {len(project.classes)}",
        comment(
            f"The levels: {choices.strides_reason}. {_LEVELS[project.detector]}, the first and the last all beyond."
        ),
        f"model.head_in_features = {_list(levels)}",
        f"model.backbone.in_features = {_list(inputs)}",
        f"model.head.input_shape = model.head.input_shape[:1] * {len(strides)}  # one a level",
    ]
    if strides[-1] == 64:
        lines.append("model.backbone.top_block = L(LastLevelMaxPool)()  # p6")
    if strides[-1] == 128:
        lines.append('model.backbone.top_block = L(P6P7)(in_channels=96, out_channels=96, in_feature="p5")')
    if project.detector == "retinanet":
        sizes = "[[size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in " + f"{[4 * x for x in strides]}]"
        lines += [
            "# Anchors: three of 4 to 8 times the stride, in each of the ratios.",
            f"model.anchor_generator.sizes = {sizes}",
            f"# The ratios: {choices.ratios_reason}.",
            f"model.anchor_generator.aspect_ratios = {[*choices.ratios]}",
            f"model.head.num_anchors = {3 * len(choices.ratios)}  # sizes x ratios",
        ]
    elif project.detector != "fcos":
        lines.append(f"model.anchor_generator.sizes = {[[8 * stride] for stride in strides]}  # 8 times the stride")
    if project.detector != "fcos":
        lines.append(f"model.anchor_generator.strides = {[*strides]}")
    return "\n".join(lines)


def _backbone(backbone: Backbone) -> str:
    return "\n".join(
        [
            comment(f"Its first weights: {backbone.weights_reason}."),
            f"model.backbone.bottom_up = {_wrapped(backbone.node)}",
            f"model.pixel_mean = {[*backbone.pixel_mean]}  # of the images that these weights want",
            f"model.pixel_std = {[*backbone.pixel_std]}",
        ]
    )


def _training(backbone: Backbone, role: str) -> str:
    return "\n".join(
        [
            f"optimizer.lr = {backbone.lr}  # {backbone.lr_reason}",
            f'train.init_checkpoint = "{backbone.init_checkpoint}"',
            f'train.output_dir = str(_here / "output/{role}")',
        ]
    )


def _wrapped(node: str) -> str:
    """An expression whose outer arguments stand in a line of their own if it is long."""
    if len(node) < 80:
        return node
    head, _, arguments = node.partition(")(")
    inner, depth, lines = arguments[:-1], 0, [""]
    for character in inner:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            lines.append("")
        else:
            lines[-1] += character
    return f"{head})(\n" + "".join(f"    {line.strip()},\n" for line in lines) + ")"


def _list(names: list[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _text(path: Path, folder: Path) -> str:
    """:func:`path_text` as a string of the config."""
    return (
        f"str({path_text(path, folder)})" if path.is_relative_to(folder) else json.dumps(str(path), ensure_ascii=False)
    )
