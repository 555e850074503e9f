"""
Begin a project with your own images: reads them and their labels, says what it found, and writes three short configs
that are yours to change (data.py, teacher.py, student.py), with sizes, schedule and batch chosen for these images.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from detectron2.config import instantiate
from omegaconf import OmegaConf

from d2kd.checkpoint import check_whole
from d2kd.cli import Parser, check_folder, run_command
from d2kd.cli.init_backbones import Backbone, find_backbone
from d2kd.cli.init_choices import Choices, choose
from d2kd.cli.init_files import DETECTORS, Project, TrainedTeacher, config_files
from d2kd.cli.init_report import report
from d2kd.config import load_config
from d2kd.config.teacher_file import build_teacher
from d2kd.data.formats import FORMATS, class_names, find_format, label_files, read_labelled
from d2kd.data.survey import Survey, survey
from d2kd.methods import METHODS, get_losses

COMMAND = "d2kd init"
EXAMPLES = """
IMAGES is the folder of the images; for YOLO and VOC also a text file that lists them, for a split. ANNOTATIONS is
COCO's json file, or the folder of YOLO's text files or VOC's xml files. YOLO's class names are read from classes.txt,
obj.names or a .yaml beside or above them.

A backbone is timm:NAME, for any convolutional network of timm, or resnet18, resnet34, resnet50 or resnet101. A teacher
can also be a detector that is trained already: FILE is its checkpoint beside a config.yaml, or that config.yaml.

examples:
  d2kd init birds --train photos/train photos/train.json --val photos/val photos/val.json
  d2kd init birds --train images/train labels/train --val images/val labels/val \\
      --detector fcos --student timm:mobilenetv3_large_100 --teacher timm:convnext_nano
  d2kd init birds --train images/train labels/train --val images/val labels/val --teacher other/model_final.pth
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the project; its name is that of the data")
    for split in ("train", "val"):
        add(f"--{split}", nargs=2, type=Path, required=True, metavar=("IMAGES", "ANNOTATIONS"))
    add("--format", choices=[*FORMATS], metavar="FORMAT", help=f"{', '.join(FORMATS)} (default: by the files' endings)")
    add(
        "--detector", choices=[*DETECTORS], default="gfl", metavar="NAME", help=f"{', '.join(DETECTORS)} (default: gfl)"
    )
    add("--student", default="timm:mobilenetv3_small_100", metavar="BACKBONE", help="default: %(default)s")
    add("--teacher", default="resnet50", metavar="BACKBONE|FILE", help="default: %(default)s")
    add("--method", default="crosskd", help="a name of `d2kd methods` (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError, ImportError: files that are there already, data that cannot be trained on, or a backbone,
            teacher or method that there is not.
    """
    folder = args.folder.resolve()
    check_folder("FOLDER", args.folder)
    if re.fullmatch(r"[A-Za-z0-9_.-]+", folder.name) is None:
        raise ValueError(f"The project's folder is named {folder.name!r}, expected letters, digits and _ - . alone.")
    for name in ("data.py", "teacher.py", "student.py"):
        if (folder / name).exists():
            raise ValueError(f"{args.folder / name} exists and is left alone: choose another folder, or move it away.")
    if args.method not in METHODS:
        raise ValueError(f"--method is {args.method!r}, expected one of {', '.join(METHODS)}.")
    get_losses(args.method, DETECTORS[args.detector])  # refused where there is no preset
    data = {split: _resolved(getattr(args, split)) for split in ("train", "val")}
    format = args.format or _one_format(data)
    classes = _classes(format, data)
    student = find_backbone(args.student, "--student")
    is_backbone = args.teacher.startswith("timm:") or not ("/" in args.teacher or "." in args.teacher)
    teacher = find_backbone(args.teacher, "--teacher") if is_backbone else _trained(Path(args.teacher), len(classes))
    found = {split: _survey(split, format, *data[split], classes) for split in data}
    print(report(format, data, found, classes))
    difficult = found["val"].difficult > 0
    project = Project(folder, format, data, classes, difficult, args.detector, args.method, student, teacher)
    choices = choose(found["train"])
    files = config_files(project, choices)
    print(_chosen(choices))
    first_weights = {
        role: backbone.weights_reason
        for role, backbone in (("teacher", teacher), ("student", student))
        if isinstance(backbone, Backbone)
    }
    _write(folder, files, first_weights)
    print(_next_steps(args.folder, files))


def _resolved(paths: Sequence[Path]) -> tuple[Path, Path]:
    images, annotations = (path.expanduser().resolve() for path in paths)
    return images, annotations


def _one_format(data: dict[str, tuple[Path, Path]]) -> str:
    train, val = (find_format(annotations) for _, annotations in data.values())
    if train != val:
        raise ValueError(f"--train has labels in the format {train}, --val in {val}: give both in one.")
    return train


def _classes(format: str, data: dict[str, tuple[Path, Path]]) -> list[str]:
    """
    Raises:
        ValueError: there is none, val has one that train lacks, or, in YOLO's format, whose labels have numbers, they
            are not the same in the same order.
    """
    train, val = (class_names(format, *paths) for paths in data.values())
    if not train:
        raise ValueError(f"--train has no boxes: {data['train'][1]} names no class.")
    if format == "yolo":
        for number, names in enumerate(zip_longest(train, val)):
            if len(set(names)) > 1:
                first, second = (repr(name) if name else "missing" for name in names)
                raise ValueError(f"Class {number} of --train is {first}, of --val {second}: make the names the same.")
    elif unknown := [name for name in val if name not in train]:
        raise ValueError(f"--val has the class {unknown[0]!r}, which --train does not have.")
    return train


def _survey(split: str, format: str, images: Path, annotations: Path, classes: Sequence[str]) -> Survey:
    dataset = read_labelled(format, images, annotations, classes)
    unlabelled = format != "coco" and not any(item["annotations"] for item in dataset)
    if unlabelled and not any(label_files(format, images, annotations).values()):
        raise ValueError(
            f"--{split} has {len(dataset)} images, and none has a {FORMATS[format]} file of its name in {annotations}: "
            "give the folder of the labels."
        )
    print(f"Reading {len(dataset)} images of {split} ...", flush=True)
    found = survey(dataset)
    if not len(found.boxes):
        raise ValueError(f"--{split} has {len(found.sizes)} images and no box that can be learnt from: {annotations}.")
    if (found.boxes[:, 2:] - found.boxes[:, :2]).max() <= 1:
        raise ValueError(f"--{split} has no box larger than a pixel: {annotations} gives shares of the image, perhaps.")
    return found


def _chosen(choices: Choices) -> str:
    return "\n".join(
        [
            f"input: short side {choices.short_side} pixels; {choices.size_reason}",
            f"strides: {', '.join(map(str, choices.strides))}; {choices.strides_reason}",
            f"batch: {choices.batch}; {choices.batch_reason}",
            f"schedule: {choices.iterations} iterations; {choices.iterations_reason}",
        ]
    )


def _trained(file: Path, num_classes: int) -> TrainedTeacher:
    """
    A teacher's config and checkpoint, of either.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError, TypeError: they are none, or of a detector of another number of classes; see :func:`build_teacher`.
    """
    file = file.expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(
            f"--teacher is {file}, but there is no such file; a backbone is timm:NAME or resnet50, for example."
        )
    if file.suffix in (".yaml", ".yml"):
        config, checkpoint = file, file.with_name("model_final.pth")
    elif file.suffix in (".pth", ".pkl"):
        config, checkpoint = file.with_name("config.yaml"), file
    else:
        raise ValueError(f"--teacher is {file}, expected a checkpoint (.pth, .pkl) or the config.yaml beside it.")
    for path in (config, checkpoint):
        if not path.is_file():
            raise FileNotFoundError(f"--teacher is {file}, but {path.name} is missing beside it.")
    detector = build_teacher(str(config))
    if detector.num_classes != num_classes:
        raise ValueError(
            f"--teacher is {file}, which has {detector.num_classes} classes, the data {num_classes}: for a teacher of "
            "other classes set model.teacher.class_map in a config of your own."
        )
    check_whole(checkpoint)
    input_format = None
    if getattr(detector, "input_format", None) is None:
        mapper = OmegaConf.select(load_config(str(config)), "dataloader.train.mapper")
        input_format = (mapper or {}).get("image_format")
    return TrainedTeacher(config, checkpoint, input_format)


def _write(folder: Path, files: dict[str, str], first_weights: Mapping[str, str]) -> None:
    """
    Put the files into the folder, once the detectors of a copy could be built.

    Args:
        first_weights: where they come from, of each detector that is trained.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder if folder.exists() else folder.parent
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=place) as workspace:
        new = Path(workspace, "new")
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8")
        for role, source in first_weights.items():
            cfg = load_config(str(new / f"{role}.py"))
            node = cfg.model.student if role == "student" else cfg.model
            for key in ("pretrained", "weights"):
                node.backbone.bottom_up.pop(key, None)
            millions = sum(x.numel() for x in instantiate(node).parameters()) / 1e6
            print(f"{role}: {millions:.1f} M parameters; the backbone's first weights: {source}")
        if not folder.exists():
            new.rename(folder)
            return
        for name in files:
            (new / name).rename(folder / name)


def _next_steps(folder: Path, files: dict[str, str]) -> str:
    def config(name: str) -> str:
        return f"--config-file {shlex.quote(str(folder / name))}"

    output = shlex.quote(str(folder / "output"))
    train_teacher = [f"  d2kd train {config('teacher.py')}"] if "teacher.py" in files else []
    return "\n".join(
        [
            f"Written: {', '.join(str(folder / name) for name in files)}. Read them: they are yours to change. Then:",
            *train_teacher,
            f"  d2kd check {config('student.py')}",
            f"  d2kd train {config('student.py')}",
            f"  d2kd compare {config('student.py')} --output {output}/compare",
            "and d2kd predict, d2kd export and d2kd analyze for what came out (docs/own_data.md).",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(COMMAND, run, argument_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
