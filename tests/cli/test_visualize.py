"""d2kd visualize."""

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.structures import BoxMode
from PIL import Image

from d2kd.cli.visualize import main
from d2kd.engine.sheet import file_names
from d2kd.engine.sheet import test_images as images_of
from tests.helpers import build_detector

CONFIG = """
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data import transforms as T

import d2kd
from d2kd.methods import get_losses
from tests.cli.test_visualize import entries
from tests.helpers import build_detector

model = d2kd.distill(
    L(build_detector)(family="GFL"),
    teacher=L(build_detector)(family="GFL", width=8, seed=1),
    teacher_checkpoint="{folder}/teacher.pth",
    losses=get_losses("ld", "GFL"),
)
dataloader = dict(
    train={{}},
    test=L(build_detection_test_loader)(
        dataset=L(entries)(folder="{folder}", labelled=True),
        mapper=L(DatasetMapper)(
            is_train=False, augmentations=[L(T.ResizeShortestEdge)(short_edge_length=64)], image_format="BGR"
        ),
    ),
)
train = d2kd.get_config("common/train.py").train
train.update(device="cpu", output_dir="{folder}/output")
"""


def entries(folder, labelled=True):
    """Three images of 64 x 32, the first without objects; the second has a crowd as well."""
    boxes = [[], [[4, 6, 20, 30], [0, 0, 32, 64]], [[2, 10, 16, 16]]] if labelled else [[], [], []]
    return [
        {
            "file_name": f"{folder}/{index}.png",
            "image_id": index,
            "height": 64,
            "width": 32,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": int(box[2] == 32)}
                for box in of_image
            ],
        }
        for index, of_image in enumerate(boxes)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visualize")
    rng = np.random.default_rng(0)
    for name in ("0.png", "1.png", "2.png", "street.png"):
        Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_text("no image")
    for name, kwargs in {"teacher": {"width": 8, "seed": 1}, "student": {}, "other": {"width": 12}}.items():
        torch.save({"model": build_detector("GFL", **kwargs).state_dict()}, folder / f"{name}.pth")
    (folder / "mine.py").write_text(CONFIG.format(folder=folder))
    return folder


@pytest.fixture
def visualize(folder):
    given = ["--config-file", str(folder / "mine.py"), "--weights", str(folder / "student.pth")]
    return lambda *argv: main([*given, *map(str, argv)])


def test_a_sheet_for_each_of_the_first_images_with_objects(visualize, folder, capsys):
    assert visualize("--alone", folder / "student.pth") == 0
    sheets = [folder / "output" / "visualize" / name for name in ("1_1.png", "2_2.png")]
    assert capsys.readouterr().out.split() == list(map(str, sheets))
    assert all(Image.open(path).width == 1120 for path in sheets)


def test_numbers_files_and_a_file_of_the_test_data(visualize, folder, tmp_path, capsys):
    override = "dataloader.test.mapper.augmentations.0.short_edge_length=64"  # people type it last
    assert visualize("--output", tmp_path, "--images", 0, folder / "street.png", folder / "2.png", override) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0_0.png", "2.png", "street.png"]


def test_labels_are_where_the_mapper_puts_the_image(folder):
    cfg = LazyConfig.load(str(folder / "mine.py"))
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = 64
    before = np.random.get_state()[1].copy()
    (name, item), (_, other) = images_of(cfg, 2)
    assert name == "1: 1.png" and item["image"].shape == (3, 128, 64)
    assert item["instances"].gt_boxes.tensor.tolist() == [[8, 12, 48, 72]]  # twice as large, without the crowd
    assert other["instances"].gt_classes.tolist() == [1]
    assert "instances" not in images_of(cfg, [str(folder / "street.png")])[0][1]
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--weights", "{folder}/none.pth"], "There is no checkpoint {folder}/none.pth."),
        (["--weights", "{folder}/other.pth"], "{folder}/other.pth is a checkpoint of a detector in another size"),
        (["--alone", "{folder}/none.pth"], "There is no checkpoint {folder}/none.pth (--alone)."),
        (["--alone", "{folder}/other.pth"], "{folder}/other.pth is a checkpoint of a detector in another size"),
        (["--method", "alone"], "has no teacher and losses to look at: take a distilled config (d2kd.distill), or add"),
        (["--images", "nothing.jpg"], "'nothing.jpg' is no file, and no number of an image of dataloader.test."),
        (["--images", "3"], "dataloader.test has 3 images, from 0 to 2, but 3 was asked for."),
        (["--images", "{folder}/broken.png"], "dataloader.test.mapper cannot read {folder}/broken.png"),
        (["dataloader.test=null"], "dataloader.test has no dataset and mapper"),
        (
            ["dataloader.test.dataset.labelled=False"],
            "No image of dataloader.test has objects: name some with --im",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(argv, sentence, visualize, folder, capsys):
    assert visualize(*(x.format(folder=folder) for x in argv)) == 2
    said = capsys.readouterr().err
    assert said.startswith("d2kd visualize: ") and sentence.format(folder=folder) in said


def test_images_of_one_name_have_files_of_their_own():
    names = ["a.jpg", "a.png", "a_2.jpg", "7: a b.jpg", "a.jpg"]
    assert file_names(names) == ["a.png", "a_2.png", "a_2_2.png", "7_a_b.png", "a_3.png"]
