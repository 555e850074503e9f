"""The text of the configs that `d2kd init` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2kd.cli.init_backbones import Backbone
from d2kd.cli.init_choices import Choices
from d2kd.methods import get_losses

__all__ = ["DETECTORS", "Project", "TrainedTeacher", "config_files"]

#: Detector -> the class whose preset a method has.
DETECTORS = {"gfl": "GFL", "fcos": "FCOS", "retinanet": "RetinaNet", "atss": "ATSS"}
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
    """What the command line asks for: ``data`` has the images and annotations of "train" and "val"."""

    folder: Path
    format: str
    data: dict[str, tuple[Path, Path]]
    classes: list[str]
    detector: str
    method: str
    student: Backbone
    teacher: Backbone | TrainedTeacher


def config_files(project: Project, choices: Choices) -> dict[str, str]:
    """File name -> text: ``data.py``, ``teacher.py`` (without a trained teacher) and ``student.py``."""
    files = {"data.py": _data(project, choices)}
    if isinstance(project.teacher, Backbone):
        files["teacher.py"] = _teacher(project, choices, project.teacher)
    files["student.py"] = _student(project, choices)
    return files


def _data(project: Project, choices: Choices) -> str:
    name = project.folder.name
    inside = all(path.is_relative_to(project.folder) for paths in project.data.values() for path in paths)
    register = "\n".join(
        f'register_labelled(\n    "{name}_{split}",\n    format="{project.format}",\n'
        f"    images={_path(images, project.folder)},\n    annotations={_path(annotations, project.folder)},\n"
        "    classes=_classes,\n)"
        for split, (images, annotations) in project.data.items()
    )
    moved = (
        "# The data lie in this folder and are found relative to it: both can be moved together."
        if inside
        else "# The data lie elsewhere, at absolute paths: this folder can be moved. Where the data move, change these."
    )
    evaluator = f'L(COCOEvaluator)(dataset_name="{name}_val", tasks=["bbox"])'
    if project.format != "coco":  # Detectron2 converts the labels
        evaluator = (
            f'L(COCOEvaluator)(\n        dataset_name="{name}_val",\n        tasks=["bbox"],\n'
            '        output_dir="${train.output_dir}",  # where Detectron2 writes the labels in the format of COCO\n'
            "        allow_cached_coco=False,  # anew each time: they may have been corrected\n    )"
        )
    sides = [round(0.8 * choices.short_side), round(1.2 * choices.short_side)]
    in_training = f'short_edge_length={sides}, sample_style="range", max_size={choices.max_size}'
    in_evaluation = f"short_edge_length={choices.short_side}, max_size={choices.max_size}"
    quarter = max(1, choices.iterations // 4)
    return f'''"""What teacher and student of {name} share: the images, and how long they train on them."""

from pathlib import Path

import d2kd
from d2kd.data import build_train_loader, register_labelled
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator

_here = Path(__file__).resolve().parent  # everything that is trained goes to output/ in this folder
_classes = {json.dumps(project.classes, ensure_ascii=False)}  # by class id
{moved}
{register}

dataloader = dict(
    train=L(build_train_loader)(  # Detectron2's build_detection_train_loader, with an order that resumes
        dataset=L(get_detection_dataset_dicts)(names="{name}_train", filter_empty=False),  # images without boxes stay
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                # Around the size that is evaluated, below.
                L(T.ResizeShortestEdge)({in_training}),
                L(T.RandomFlip)(horizontal=True),  # delete it where mirroring makes another object, as of text
            ],
            image_format="RGB",  # the order in which the backbones' first weights want the channels
        ),
        total_batch_size={choices.batch},  # {choices.batch_reason}
        num_workers={0 if choices.device == "cpu" else 4},  # processes that read images{_WORKERS[choices.device]}
        seed="${{train.seed}}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="{name}_val", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
            # The short side, in pixels: {choices.size_reason}.
            augmentations=[L(T.ResizeShortestEdge)({in_evaluation})],
            image_format="RGB",
        ),
        batch_size={choices.batch},
        num_workers={0 if choices.device == "cpu" else 4},
    ),
    evaluator={evaluator},
)

optimizer = d2kd.get_config("common/optim.py").adamw  # weight decay 0.01, none for norms
lr_multiplier = d2kd.get_config("common/optim.py").steps  # warm-up, drops at 6/9 and 8/9 of train.max_iter
train = dict(  # docs: configs/common/train.py of d2kd
    max_iter={choices.iterations},  # {choices.iterations_reason}; fewer to try things out
    eval_period={quarter},  # iterations between two evaluations
    checkpointer=dict(period={quarter}, max_to_keep=1),  # iterations between two checkpoints
    log_period=20,  # iterations between two lines of the log
    init_checkpoint="",  # what the detector starts from, beside its backbone's weights
    seed=0,  # of initial weights, order of images, augmentations
    device="{choices.device}",  # "cuda" or "cpu"
    amp=dict(enabled=False),  # mixed precision, for a GPU
    clip_grad=dict(max_norm=10.0, norm_type=2.0),  # of all gradients together; read by d2kd train only
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),  # for several GPUs
)
'''


_WORKERS = {"cpu": "; 0: the process that trains, which needs the cores", "cuda": " beside the one that trains"}


def _teacher(project: Project, choices: Choices, teacher: Backbone) -> str:
    return f'''"""The teacher of {project.folder.name}, trained on the labels alone."""

{_imports(choices.strides, [teacher])}

from .data import _here, dataloader, lr_multiplier, optimizer, train

{_detector(project, choices)}
{_backbone(teacher)}
{_training(teacher, "teacher")}
'''


def _student(project: Project, choices: Choices) -> str:
    name, student, teacher = project.folder.name, project.student, project.teacher
    if isinstance(teacher, TrainedTeacher):
        head = f'''"""The student of {name}, distilled from {teacher.config.name}; model.losses=null trains it alone."""

{_imports(choices.strides, [student])}

from .data import _here, dataloader, lr_multiplier, optimizer, train

{_detector(project, choices)}
'''
        distilled = (
            f"model = d2kd.distill(\n    model,\n    teacher={_text(teacher.config, project.folder)},\n"
            f"    teacher_checkpoint={_text(teacher.checkpoint, project.folder)},\n"
            f'    method="{project.method}",\n)'
        )
    else:
        head = f'''"""The student of {name}, distilled from teacher.py; model.losses=null trains it alone."""

from copy import deepcopy

{_imports((), [student, teacher])}

from .teacher import _here, dataloader, lr_multiplier, model, optimizer, train

_teacher = deepcopy(model)  # the student is the same detector, on another backbone
# Without its first weights: all weights are in the checkpoint.
_teacher.backbone.bottom_up = {_wrapped(teacher.node_without_weights)}
'''
        distilled = (
            "model = d2kd.distill(\n    model,\n    teacher=_teacher,\n"
            '    teacher_checkpoint=str(_here / "output/teacher/model_final.pth"),\n'
            f'    method="{project.method}",  # d2kd methods lists the others\n)'
        )
    family = DETECTORS[project.detector]
    losses = get_losses(project.method, family)
    deep = [key for key, loss in losses.items() if loss.get("tail", 0) >= _BLOCKS]
    lines = [f"model.losses.{key}.tail = 1  # the heads have two blocks, the paper's more" for key in deep]
    if project.detector == "fcos":
        lines.append('model.input_format = "RGB"  # FCOS does not say itself')
    input_format = "RGB" if isinstance(teacher, Backbone) and project.detector == "fcos" else None
    if isinstance(teacher, TrainedTeacher):
        input_format = teacher.input_format
    if input_format is not None:
        lines.append(f'model.teacher.input_format = "{input_format}"')
    return "\n".join([head + _backbone(student), distilled, *lines, _training(student, "student"), ""])


def _imports(strides: Sequence[int], backbones: Sequence[Backbone]) -> str:
    found = {line for backbone in backbones for line in backbone.imports}
    found.add("from detectron2.config import LazyCall as L")
    if strides[-1:] == (64,):
        found.add("from detectron2.modeling.backbone.fpn import LastLevelMaxPool")
    if strides[-1:] == (128,):
        found.add("from d2kd.modeling.backbones import P6P7")
    return "\n".join(["import d2kd", *sorted(found)])


def _detector(project: Project, choices: Choices) -> str:
    strides = choices.strides
    levels = [f"p{stride.bit_length() - 1}" for stride in strides]
    inputs = [f"res{stride.bit_length() - 1}" for stride in strides if stride <= 32]
    lines = [
        f"# {DETECTORS[project.detector]} with an FPN of 96 channels and heads of two blocks, the packaged config for "
        "small backbones.",
        f'model = d2kd.get_config("common/models/{project.detector}_timm.py").model',
        f"model.num_classes = {len(project.classes)}",
        f"# The levels: {choices.strides_reason}.",
        "# Each answers for boxes of 4 to 8 times its stride, the first and the last for all beyond.",
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
            f"# Its first weights: {backbone.weights_reason}.",
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
    """:func:`_path` as a string of the config."""
    return f"str({_path(path, folder)})" if path.is_relative_to(folder) else f'"{path}"'


def _path(path: Path, folder: Path) -> str:
    """A path as the config says it: relative to the project's folder if it is inside."""
    if path.is_relative_to(folder):
        return f'_here / "{path.relative_to(folder).as_posix()}"'
    return f'Path("{path}")'
