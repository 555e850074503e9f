"""What ``d2kd init`` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from d2kd.methods import METHODS
from tests.bad_inputs.case import BadInput
from tests.bad_inputs.tiny import write_images

__all__ = ["CASES"]

DATA = "--train images birds.json --val images birds.json"


def case(given: str, arguments: str, says: str, prepare: Callable[[Path], object] = write_images) -> BadInput:
    """``d2kd init`` of a project named mine; what ``prepare`` writes is there before."""

    def make(folder: Path) -> list[str]:
        prepare(folder)
        return ["init", "mine", *arguments.split()]

    return BadInput("Dataset", f"`d2kd init` {given}", make, f"d2kd init: {says}")


def changed(change: Callable[[dict], object], name: str = "other.json") -> Callable[[Path], None]:
    """The images, and a second file of labels."""

    def prepare(folder: Path) -> None:
        write_images(folder)
        content = json.loads((folder / "birds.json").read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return prepare


def broken(folder: Path) -> None:
    write_images(folder)
    (folder / "images/1.png").unlink()
    (folder / "images/2.png").write_text("<html>")
    Image.new("RGB", (32, 64)).save(folder / "images/3.png")


def yolo(*lines: str, names: str = "tern\nheron\n") -> Callable[[Path], None]:
    """Labels of the first image, in YOLO's format."""

    def prepare(folder: Path) -> None:
        write_images(folder)
        (folder / "labels").mkdir()
        (folder / "labels/classes.txt").write_text(names)
        (folder / "labels/0.txt").write_text("\n".join(lines))

    return prepare


def names(folder: Path, text: str) -> None:
    """Names of classes, and no labels."""
    folder.mkdir()
    (folder / "classes.txt").write_text(text)
    (folder / "0.txt").write_text("")


def voc(name: str) -> Callable[[Path], None]:
    """Labels of one image for train and for val, in VOC's format; in the latter an object of the class ``name``."""

    def prepare(folder: Path) -> None:
        write_images(folder)
        for split, found in (("train", "tern"), ("val", name)):
            (folder / split).mkdir()
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            text = f"<annotation><object><name>{found}</name>{box}</object></annotation>"
            (folder / split / "0.xml").write_text(text)

    return prepare


def project(folder: Path) -> None:
    write_images(folder)
    (folder / "mine").mkdir()
    (folder / "mine/student.py").write_text("mine = 1\n")


def checkpoint(folder: Path) -> None:
    write_images(folder)
    (folder / "model.pth").write_bytes(b"weights")


CASES = [
    case(
        "over files of one's own",
        DATA,
        "mine/student.py exists and is left alone: choose another folder, or move it away.",
        project,
    ),
    case(
        "without validation data",
        "--train images birds.json",
        "the following arguments are required: --val (d2kd init --help).",
    ),
    case(
        "with labels that are not there",
        "--train images none.json --val images birds.json",
        "{folder}/none.json is not there, expected a json file or the folder of the labels.",
    ),
    case(
        "with a folder of images in place of the labels",
        "--train images images --val images birds.json",
        "{folder}/images has no .json, .txt or .xml labels: give the right file or folder, and --format.",
    ),
    case(
        "with another format in val",
        "--train images labels --val images birds.json",
        "--train has labels in the format yolo, --val in coco: give both in one.",
        yolo("0 0.5 0.5 0.5 0.5"),
    ),
    case(
        "with a folder without images",
        "--train empty labels --val images labels",
        "{folder}/empty has no images (.jpg, .jpeg, .png, .bmp, .webp, .tif, .tiff).",
        lambda folder: (yolo("0 0.5 0.5 0.5 0.5")(folder), (folder / "empty").mkdir()),
    ),
    case(
        "with images that cannot be trained on",
        DATA,
        "3 of 4 images cannot be trained on: 1 missing (first {folder}/images/1.png), 1 that are no images (first "
        "{folder}/images/2.png), 1 of another size than their labels state (first {folder}/images/3.png): mend them, or "
        "leave them and their labels out.",
        broken,
    ),
    case(
        "without annotations",
        "--train images other.json --val images birds.json",
        "{folder}/other.json has no annotations.",
        changed(lambda content: content["annotations"].clear()),
    ),
    case(
        "with boxes without area",
        "--train images other.json --val images birds.json",
        "--train has 4 images and no box that can be learnt from: {folder}/other.json.",
        changed(lambda content: [entry.update(bbox=[0, 0, 0, 0]) for entry in content["annotations"]]),
    ),
    case(
        "with other classes in val",
        "--train images birds.json --val images other.json",
        "--val has the class 'gull', which --train does not have.",
        changed(lambda content: content["categories"][2].update(name="gull")),
    ),
    case(
        "with boxes that are shares of the image",
        "--train images other.json --val images birds.json",
        "--train has no box larger than a pixel: {folder}/other.json gives shares of the image, perhaps.",
        changed(lambda content: [entry.update(bbox=[0.1, 0.1, 0.5, 0.5]) for entry in content["annotations"]]),
    ),
    case(
        "with other names in val, in YOLO's format",
        "--train images labels --val images val",
        "Class 0 of --train is 'tern', of --val 'heron': make the names the same.",
        lambda folder: (yolo("0 0.5 0.5 0.5 0.5")(folder), names(folder / "val", "heron\ntern\n")),
    ),
    case(
        "with an empty line between YOLO's names",
        "--train images labels --val images labels",
        "{folder}/labels/classes.txt has an empty line between the names of classes: delete it.",
        yolo("0 0.5 0.5 0.5 0.5", names="tern\n\nheron\n"),
    ),
    case(
        "with a folder of labels of other images",
        "--format yolo --train images other --val images labels",
        "--train has 4 images, and none has a .txt file of its name in {folder}/other: give the folder of the labels.",
        lambda folder: (
            yolo("0 0.5 0.5 0.5 0.5")(folder),
            names(folder / "other", "tern\nheron\n"),
            (folder / "other/0.txt").rename(folder / "other/9.txt"),
        ),
    ),
    case(
        "with two images of one label file",
        "--train images labels --val images labels",
        "{folder}/images/0.jpg and {folder}/images/0.png have one label file, {folder}/labels/0.txt: rename one of the "
        "images.",
        lambda folder: (yolo("0 0.5 0.5 0.5 0.5")(folder), Image.new("RGB", (8, 8)).save(folder / "images/0.jpg")),
    ),
    case(
        "with a class in val that train lacks",
        "--train images train --val images val",
        "--val has the class 'gull', which --train does not have.",
        voc("gull"),
    ),
    case(
        "with a class id that has no name",
        "--train images labels --val images labels",
        "{folder}/labels/0.txt: line 1 has the class 2, expected 0 to 1.",
        yolo("2 0.5 0.5 0.5 0.5"),
    ),
    case(
        "with YOLO's labels without names",
        "--train images labels --val images labels",
        "{folder}/labels and the folders above it have no names of classes: write them into "
        "{folder}/labels/classes.txt, a name a line, in the order of the class ids.",
        yolo("0 0.5 0.5 0.5 0.5", names=""),
    ),
    case(
        "of an unknown detector",
        f"{DATA} --detector yolox",
        "argument --detector: yolox is none of gfl, fcos, retinanet, atss (d2kd init --help).",
    ),
    case(
        "of an unknown method",
        f"{DATA} --method croskd",
        f"--method is 'croskd', expected one of {', '.join(METHODS)}.",
    ),
    case(
        "of a network that gives features of one stride",
        f"{DATA} --student timm:vit_tiny_patch16_224",
        "--student: timm's vit_tiny_patch16_224 takes images of one size, expected features of strides 8, 16 and 32 of "
        "any image: take a convolutional network.",
    ),
    case(
        "of an unknown backbone",
        f"{DATA} --student resnet19",
        "--student is 'resnet19', expected timm:NAME, or one of resnet18, resnet34, resnet50, resnet101.",
    ),
    case(
        "of a teacher that is not there",
        f"{DATA} --teacher output/model_final.pth",
        "--teacher is {folder}/output/model_final.pth, but there is no such file; a backbone is timm:NAME or resnet50, "
        "for example.",
    ),
    case(
        "of a teacher without a config",
        f"{DATA} --teacher model.pth",
        "--teacher is {folder}/model.pth, but config.yaml is missing beside it.",
        checkpoint,
    ),
    case(
        "of a teacher that is no checkpoint",
        f"{DATA} --teacher birds.json",
        "--teacher is {folder}/birds.json, expected a checkpoint (.pth, .pkl) or the config.yaml beside it.",
    ),
]
