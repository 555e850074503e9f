"""``d2kd init``: what it says, and that what it writes trains."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf
from PIL import Image

from d2kd.__main__ import main
from d2kd.config import load_config
from d2kd.experiments import Experiment, plan_teacher
from d2kd.modeling import DistilledDetector
from tests.data.labelled import CLASSES, write_labelled
from tests.foreign.projects import train

#: Networks of 0.4 M parameters.
SMALL = ["--student", "timm:test_resnet", "--teacher", "timm:test_efficientnet"]
AS_IT_IS = ("train.max_iter=1", "train.eval_period=0", "train.log_period=1", "dataloader.train.total_batch_size=2")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def paths(format: str, folder: Path) -> list[str]:
    """``--train`` and ``--val``, of three images each."""
    options: list[str] = []
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        options += [f"--{split}", *map(str, write_labelled(format, folder / split))]
    return options


def init(*arguments: str) -> int:
    return main(["init", "birds", *arguments])


def without_downloads(config: str, *overrides: str) -> list[str]:
    node = "model.student" if "student" in config else "model"
    return ["--config-file", config, *AS_IT_IS, f"{node}.backbone.bottom_up.pretrained=False", *overrides]


@pytest.mark.parametrize(
    ("format", "detector", "method"),
    [
        ("coco", "gfl", "crosskd"),
        ("yolo", "fcos", "crosskd"),
        ("voc", "retinanet", "bckd"),
    ],
)
def test_what_it_writes_trains(format, detector, method, folder, capsys):
    assert init(*paths(format, folder / "photos"), "--detector", detector, "--method", method, *SMALL) == 0
    out = capsys.readouterr().out
    assert "4 boxes: heron 2, tern 2" in out
    for command in ("train --config-file birds/teacher.py", "check --config-file birds/student.py"):
        assert f"\n  d2kd {command}\n" in out
    assert main(["train", *without_downloads("birds/teacher.py")]) == 0
    assert main(["train", *without_downloads("birds/student.py", "model.teacher.preflight=off")]) == 0
    record = Path("birds/output/student/metrics.json").read_text()
    assert "loss_kd_" in record and "bbox/AP" in record


def test_detectron2s_own_script(folder):
    """Its loop and its checkpointer; neither d2kd train nor defaults that d2kd adds to a config."""
    assert init(*paths("yolo", folder / "photos"), *SMALL) == 0
    for role in ("teacher", "student"):
        cfg = LazyConfig.load(f"birds/{role}.py")
        changes = ["train.max_iter=1", "train.log_period=1", "dataloader.train.total_batch_size=2"]
        if role == "student":
            changes += ["model.student.backbone.bottom_up.pretrained=False", "model.teacher.preflight=off"]
        else:
            changes += ["model.backbone.bottom_up.pretrained=False"]
        cfg = LazyConfig.apply_overrides(cfg, changes)
        Path(cfg.train.output_dir).mkdir(parents=True)
        model = train(cfg)
        assert Path(cfg.train.output_dir, "model_final.pth").is_file()
    assert isinstance(model, DistilledDetector) and len(model.losses) == 2
    instantiate(cfg.dataloader.test)
    assert instantiate(cfg.dataloader.evaluator) is not None


def test_compare_finds_the_teacher(folder):
    """Which has not been trained."""
    assert init(*paths("coco", folder / "photos"), *SMALL) == 0
    experiment = Experiment(configs=("birds/student.py",), output=Path("compare"), methods=("config",), seeds=(0,))
    checkpoint, run = plan_teacher(experiment, "birds/student.py")
    assert run is not None and Path(run.config).name == "teacher.py"
    assert checkpoint == str(folder / "birds/output/teacher/model_final.pth")


def test_a_project_that_is_moved(folder):
    """Data inside it move along."""
    assert init(*paths("yolo", folder / "birds/data"), *SMALL) == 0
    shutil.move("birds", "elsewhere")
    cfg = load_config("elsewhere/teacher.py")
    assert cfg.train.output_dir == str(folder / "elsewhere/output/teacher")
    dataset = instantiate(cfg.dataloader.train.dataset)
    assert all(item["file_name"].startswith(str(folder / "elsewhere/data/train")) for item in dataset)


class TestChoices:
    """Sizes, strides and anchors follow the boxes."""

    @pytest.fixture
    def configs(self, folder):
        def configs(side, image, *arguments, image_width=None):
            """Square boxes of ``side`` pixels in images of ``image``, square ones if no width is given."""
            size = (image_width or image, image)
            options = paths("coco", folder / "photos")
            labels = Path(options[2])
            content = json.loads(labels.read_text())
            for entry in content["images"]:
                entry.update(width=size[0], height=size[1])
            for entry in content["annotations"]:
                entry["bbox"] = [0, 0, side, side]
            labels.write_text(json.dumps(content))
            for path in Path(options[1]).iterdir():
                Image.new("RGB", size).save(path)
            assert init(*options, *SMALL, *arguments) == 0
            return load_config("birds/teacher.py")

        return configs

    @pytest.mark.parametrize(
        ("side", "image", "short_side", "strides"),
        [
            (16, 640, 640, [8, 16, 32]),  # 24 pixels would need 960: the images are no larger
            (32, 640, 480, [8, 16, 32]),
            (320, 640, 160, [16, 32]),
            (900, 1000, 160, [16, 32]),
        ],
    )
    def test_sizes(self, side, image, short_side, strides, configs):
        cfg = configs(side, image)
        assert cfg.dataloader.test.mapper.augmentations[0].short_edge_length == short_side
        assert cfg.model.anchor_generator.strides == strides
        assert cfg.model.anchor_generator.sizes == [[8 * stride] for stride in strides]
        assert cfg.model.head_in_features == [f"p{stride.bit_length() - 1}" for stride in strides]

    def test_long_images_keep_their_size(self, configs):
        """As long as they are: a shorter long side would shrink the boxes."""
        cfg = configs(20, 200, image_width=1600)
        resize = cfg.dataloader.test.mapper.augmentations[0]
        assert resize.short_edge_length == 192
        assert resize.max_size >= 8 * 192

    def test_square_boxes_need_one_ratio(self, configs):
        cfg = configs(64, 320, "--detector", "retinanet")
        assert cfg.model.anchor_generator.aspect_ratios == [1.0]
        assert cfg.model.head.num_anchors == 3


class TestTeacherOfItsOwn:
    @pytest.fixture
    def trained(self, folder):
        """A run of another project."""
        options = paths("coco", folder / "photos")
        assert init(*options, *SMALL) == 0
        assert main(["train", *without_downloads("birds/teacher.py")]) == 0
        shutil.move("birds", "other")
        return options

    @pytest.mark.parametrize("file", ["model_final.pth", "config.yaml"])
    def test_its_checkpoint_or_its_config(self, file, trained, folder):
        teacher = folder / "other/output/teacher"
        assert init(*trained, "--student", "timm:test_resnet", "--teacher", str(teacher / file)) == 0
        assert sorted(path.name for path in Path("birds").iterdir()) == ["data.py", "student.py"]
        cfg = load_config("birds/student.py")
        assert cfg.model.teacher.checkpoint == str(teacher / "model_final.pth")
        cfg.model.student.backbone.bottom_up.pretrained = False
        model = instantiate(cfg.model)
        model.load_teacher()

    def test_of_other_classes(self, trained, folder, capsys):
        config = folder / "other/output/teacher/config.yaml"
        content = OmegaConf.load(config)
        content.model.num_classes = 7
        OmegaConf.save(content, config)
        assert init(*trained, "--student", "timm:test_resnet", "--teacher", str(config)) == 2
        assert "has 7 classes, the data 2" in capsys.readouterr().err


def test_what_it_says_of_the_data(folder, capsys):
    options = paths("coco", folder / "photos")
    labels = Path(options[2])
    content = json.loads(labels.read_text())
    for entry, change in zip(
        content["annotations"], [{"bbox": [1, 2, 0, 5]}, {"iscrowd": 1}, {"bbox": [0, 0, 60, 32]}], strict=False
    ):
        entry.update(change)
    content["annotations"].pop()  # all of c.jpg
    labels.write_text(json.dumps(content))
    assert init(*options, *SMALL) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:10] == [
        "Reading 3 images of train ...",
        "Reading 3 images of val ...",
        f"train: 3 images in {folder}/photos/train/images, coco, 64 x 64 pixels (median)",
        "  1 boxes: tern 1",
        "  by size: 0 small (under 32 pixels, the root of the area), 1 medium, 0 large (from 96); half are under 39",
        "  1 of 2 classes without a box: heron",
        "  1 images without a box",
        "  1 crowd regions, not learnt from",
        "  1 boxes reach over the edge of their image, cut there",
        f"  1 further boxes without area, left out in training (first in {folder}/photos/train/images/a.jpg)",
    ]
    weights = "the backbone's first weights: "
    assert [line.partition(":")[0] for line in out if weights in line] == ["teacher", "student"]
    assert "  3 of these images are in train, too, as equal files: AP on them says little of others" in out


def test_what_it_says_of_many_classes(folder, capsys):
    options = paths("yolo", folder / "photos")
    for split in ("train", "val"):
        Path(f"photos/{split}/labels/classes.txt").write_text("\n".join(f"bird {i}" for i in range(30)))
    assert init(*options, *SMALL) == 0
    names = ", ".join(f"bird {i}" for i in range(2, 22))
    assert f"\n  28 of 30 classes without a box: {names} and 8 more\n" in capsys.readouterr().out


def test_difficult_objects_are_ignored_in_an_evaluation(folder, capsys):
    options = paths("voc", folder / "photos")
    for split in ("train", "val"):
        file = Path(f"photos/{split}/labels/a.xml")
        file.write_text(file.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>", 1))
    assert init(*options, *SMALL) == 0
    out = capsys.readouterr().out
    for fate in ("learnt from as the others are", "ignored in an evaluation"):
        assert f"\n  1 objects that their labels mark as difficult, {fate}\n" in out
    load_config("birds/teacher.py")
    for split, crowds in (("train", 0), ("val", 1)):
        dataset = DatasetCatalog.get(f"birds_{split}")
        assert sum(x["iscrowd"] for item in dataset for x in item["annotations"]) == crowds


@pytest.mark.parametrize(("format", "says"), [("yolo", "without objects"), ("voc", "left out")])
def test_images_without_labels_are_counted_and_labels_without_images(format, says, folder, capsys):
    options = paths(format, folder / "photos")
    suffix = {"yolo": ".txt", "voc": ".xml"}[format]
    Path(f"photos/train/labels/b{suffix}").rename(f"photos/train/labels/d{suffix}")
    assert init(*options, *SMALL) == 0
    out = capsys.readouterr().out
    assert f"\n  1 images have no {suffix} file of their name: {says}\n" in out
    assert f"\n  1 {suffix} files have no image of their name, and are not read\n" in out


def test_the_lines_are_short(folder):
    name = "a_project_with_a_rather_long_name"
    assert main(["init", name, *paths("voc", folder / "photos"), *SMALL, "--detector", "retinanet"]) == 0
    lines = [line for path in Path(name).iterdir() for line in path.read_text().splitlines()]
    assert [line for line in lines if len(line) > 130 and str(folder) not in line] == []


def test_nothing_is_written_where_something_is(folder, capsys):
    Path("birds").mkdir()
    Path("birds/teacher.py").write_text("mine = 1\n")
    assert init(*paths("coco", folder / "photos"), *SMALL) == 2
    says = "birds/teacher.py exists and is left alone: choose another folder, or move it away."
    assert capsys.readouterr().err == f"d2kd init: {says}\n"
    assert [path.name for path in Path("birds").iterdir()] == ["teacher.py"]


def test_a_misspelt_network(folder, capsys):
    """The nearest names are those of the timm that is installed."""
    assert init(*paths("coco", folder / "photos"), "--student", "timm:mobilenetv3_smal_100") == 2
    says = (
        r"d2kd init: --student: timm \S+ has no network 'mobilenetv3_smal_100'; similar: .*mobilenetv3_small_100.*\.\n"
    )
    assert re.fullmatch(says, capsys.readouterr().err)
    assert not Path("birds").exists()


def test_names_of_classes_are_quoted(folder):
    options = paths("yolo", folder / "photos")
    for split in ("train", "val"):
        Path(f"photos/{split}/labels/classes.txt").write_text('the "great" tern\nChouette hulotte é\n')
    assert init(*options, *SMALL, "--detector", "atss") == 0
    load_config("birds/student.py")
    assert MetadataCatalog.get("birds_train").thing_classes == ['the "great" tern', "Chouette hulotte é"]
    assert CLASSES != MetadataCatalog.get("birds_val").thing_classes
