"""d2kd predict."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from PIL import Image

from d2kd.cli.predict import main
from d2kd.export import load_student, write_weights
from tests.cli.test_visualize import CONFIG

#: The distilled config of visualize's tests, whose images are 64 x 32; and its student alone.
PLAIN = "model = model.student\n"
NAMES = """
from detectron2.data import DatasetCatalog, MetadataCatalog
if "predict_named" not in DatasetCatalog.list():
    DatasetCatalog.register("predict_named", lambda: [])
    MetadataCatalog.get("predict_named").set(
        thing_classes=["ash", "birch", "cedar", "elm", "fir", "oak", "pine"],
        thing_dataset_id_to_contiguous_id={10 * i: i for i in range(7)},
    )
dataloader["train"] = dict(dataset=dict(names="predict_named"))
"""
EVERYTHING = ("--score-threshold", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for name in ("0.png", "1.png", "2.png", "street.png", "photos/street.png", "photos/b.JPG"):
        Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(folder / name, quality=100)
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "photos" / ".hidden.png").write_text("no image")
    (folder / "broken.png").write_text("no image")
    (folder / "photos" / "leaflet.pdf").write_text("no image, but of a format that Pillow writes")
    (folder / "cut.jpg").write_bytes((folder / "photos" / "b.JPG").read_bytes()[:30])
    config = CONFIG.format(folder=folder)
    (folder / "mine.py").write_text(config + NAMES)
    (folder / "plain.py").write_text(config + PLAIN)
    node = LazyConfig.load(str(folder / "mine.py")).model
    torch.manual_seed(3)
    student = instantiate(node.student)
    torch.save({"model": student.state_dict()}, folder / "student.pth")
    torch.save({"model": instantiate(node).state_dict(), "iteration": 3}, folder / "run.pth")
    return folder


@pytest.fixture
def predict(folder, tmp_path):
    """Runs the command with the distilled config and the student's weights; returns what it wrote."""

    def call(*argv, config="mine.py", weights="student.pth", output=tmp_path / "out"):
        options = ["--config-file", folder / config, "--weights", folder / weights, "--output", output]
        assert main([*map(str, options), *map(str, argv)]) == 0
        return json.loads((output / "predictions.json").read_text())

    call.output = tmp_path / "out"
    return call


def test_it_detects_what_an_evaluation_does(folder, predict):
    rows = predict(folder / "0.png", folder / "1.png", folder / "2.png", *EVERYTHING)
    cfg = LazyConfig.load(str(folder / "plain.py"))
    detector = load_student(cfg, str(folder / "student.pth")).detector
    detector.test_score_thresh = 0.0

    class Kept:
        found = {}

        def reset(self):
            pass

        def process(self, inputs, outputs):
            self.found |= {x["file_name"]: y["instances"] for x, y in zip(inputs, outputs)}

        def evaluate(self):
            pass

    kept = Kept()
    inference_on_dataset(detector, instantiate(cfg.dataloader.test), kept)
    assert len(rows) > 30 and len(kept.found) == 3
    for file, instances in kept.found.items():
        mine = [row for row in rows if row["file_name"] == file]
        best = instances[instances.scores.argsort(descending=True)]
        assert [row["score"] for row in mine] == pytest.approx(best.scores.tolist(), abs=1e-4)
        xyxy = best.pred_boxes.tensor
        xywh = torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1)
        assert torch.allclose(torch.tensor([row["bbox"] for row in mine]), xywh, atol=0.011)
        trees = MetadataCatalog.get("predict_named").thing_classes
        assert [row["category_name"] for row in mine] == [trees[i] for i in best.pred_classes]
        assert [row["category_id"] for row in mine] == (10 * best.pred_classes).tolist()  # of the dataset


def test_the_picture_has_the_boxes_at_their_places(folder, predict):
    rows = predict(folder / "0.png", *EVERYTHING)
    picture = Image.open(predict.output / rows[0]["picture"])
    assert picture.size == (320, 640) and picture.format == "JPEG"  # small images are enlarged
    x, y, width, height = (10 * value for value in rows[0]["bbox"])
    pixels = np.asarray(picture.convert("L")).astype(int)
    # The line is white between two black ones, 2 pixels inside the box.
    row = min(max(int(y + height / 2), 0), 639)
    line = pixels[row, max(int(x), 0) : max(int(x), 0) + 5]
    assert line.max() > 180 or width < 20


@pytest.mark.parametrize(
    "config, weights", [("mine.py", "run.pth"), ("plain.py", "student.pth"), ("plain.py", "run.pth")]
)
def test_checkpoints_of_runs_and_exported_students_on_both_configs(folder, predict, config, weights):
    assert predict(folder / "0.png", *EVERYTHING, config=config, weights=weights)


def test_an_exported_student(folder, predict, tmp_path):
    exported = load_student(LazyConfig.load(str(folder / "mine.py")), str(folder / "run.pth"))
    write_weights(exported.detector, tmp_path / "exported.pth")
    rows = predict(folder / "0.png", *EVERYTHING, weights=tmp_path / "exported.pth")
    assert rows == predict(folder / "0.png", *EVERYTHING, weights="run.pth")


def test_classes_without_names_have_numbers(folder, predict, capsys):
    rows = predict(folder / "0.png", *EVERYTHING, config="plain.py")
    assert {row["category_name"] for row in rows} == {str(row["category_id"]) for row in rows}
    assert "The classes have numbers" in capsys.readouterr().out


def test_classes_that_the_data_lack_have_numbers_and_no_id(folder, predict):
    few = NAMES.replace("predict_named", "predict_few").replace('"cedar", "elm", "fir", "oak", "pine"', "")
    (folder / "few.py").write_text(CONFIG.format(folder=folder) + few.replace("range(7)", "range(2)"))
    rows = predict(folder / "0.png", *EVERYTHING, config="few.py")
    named = {"ash": 0, "birch": 10} | {str(number): None for number in range(2, 7)}
    assert all(row["category_id"] == named[row["category_name"]] for row in rows)
    assert {"ash", "2"} <= {row["category_name"] for row in rows}


def test_the_threshold(folder, predict, capsys):
    everything = predict(folder / "0.png", *EVERYTHING)
    scores = [row["score"] for row in everything]
    middle = scores[len(scores) // 2]
    some = predict(folder / "0.png", "--score-threshold", middle)
    assert 0 < len(some) < len(scores) and min(row["score"] for row in some) >= middle - 1e-4
    assert predict(folder / "0.png", "--score-threshold", 1) == []
    assert "0.png: 0 objects" in capsys.readouterr().out
    assert len(list(predict.output.glob("*.jpg"))) == 1


def test_folders_and_images_of_one_name(folder, predict, capsys):
    rows = predict(folder / "street.png", folder / "photos", folder / "street.png", *EVERYTHING)
    files = [str(folder / name) for name in ("street.png", "photos/b.JPG", "photos/street.png")]
    assert [*dict.fromkeys(row["file_name"] for row in rows)] == files
    pictures = {row["file_name"]: row["picture"] for row in rows}
    assert [*pictures.values()] == ["street.jpg", "b.jpg", "street_2.jpg"]
    assert {path.name for path in predict.output.iterdir()} == {*pictures.values(), "predictions.json"}
    assert "on 3 images" in capsys.readouterr().out


def test_a_photograph_that_is_turned_is_seen_upright(folder, predict, tmp_path):
    upright = Image.open(folder / "0.png")
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    rows = predict(tmp_path / "upright.png", tmp_path / "turned.png", *EVERYTHING)
    boxes = {
        name: [row["bbox"] for row in rows if row["file_name"].endswith(name)] for name in ("upright.png", "turned.png")
    }
    assert boxes["upright.png"] == boxes["turned.png"] != []
    pictures = [np.asarray(Image.open(predict.output / name)) for name in ("upright.jpg", "turned.jpg")]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_images_than_rgb(folder, predict, tmp_path, mode):
    Image.open(folder / "0.png").convert(mode).save(tmp_path / "x.png")
    assert predict(tmp_path / "x.png", *EVERYTHING)


def test_overrides(folder, predict):
    all_of_them = predict(folder / "0.png", *EVERYTHING)
    few = predict(folder / "0.png", *EVERYTHING, "model.student.max_detections_per_image=3")
    assert len(few) == 3 < len(all_of_them)


@pytest.mark.parametrize(
    "images, sentence",
    [
        (["{folder}/no.png"], "There is no image or folder '{folder}/no.png'."),
        (["{folder}/cut.jpg"], "{folder}/cut.jpg cannot be read: Truncated File Read."),
        (["{folder}/0.png", "{folder}/broken.png"], "{folder}/broken.png is no image that Pillow reads."),
        (["{tmp}/empty"], "The folder {tmp}/empty has no images (.jpg, .jpeg, .png, "),
        (["{tmp}/cut.png"], "dataloader.test.mapper cannot read {tmp}/cut.png: OSError: image file is truncated"),
        (["train.device=cpu"], "No image is given, expected files or folders of images."),
        (["{tmp}/out/0.jpg"], "The picture {tmp}/out/0.jpg would replace the image {tmp}/out/0.jpg: give another"),
        (["{folder}/0.png", "--weights", "{folder}/no.pth"], "The weights are '{folder}/no.pth', but there is no such"),
        (["{folder}/0.png", "--weights", "{folder}/0.png"], "{folder}/0.png"),
        (
            ["{folder}/0.png", "model={{_target_: torch.nn.Identity}}"],
            "The config's model is of Identity, expected a one-stage",
        ),
        (["{folder}/0.png", "dataloader.test.mapper=null"], "The config has no dataloader.test.mapper, which says how"),
        (
            ["{folder}/0.png", "dataloader.test.mapper.image_format=RGB"],
            "dataloader.test.mapper.image_format is 'RGB', but model.input_format is 'BGR'",
        ),
    ],
)
def test_refusals(folder, tmp_path, images, sentence, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    Image.open(folder / "0.png").save(tmp_path / "out" / "0.jpg")
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:90000])
    before = (tmp_path / "out" / "0.jpg").read_bytes()
    config = "mine.py"
    if images[-1] == "Identity":
        config = "identity.py"
        (folder / config).write_text(
            "import torch\nfrom detectron2.config import LazyCall as L\nmodel = L(torch.nn.Identity)()\n"
        )
        images = images[:1]
    given = ["--config-file", str(folder / config), "--weights", str(folder / "student.pth")]
    argv = [x.format(folder=folder, tmp=tmp_path) for x in images]
    assert main([*given, "--output", str(tmp_path / "out"), *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"d2kd predict: {sentence.format(folder=folder, tmp=tmp_path)}")
    assert os.listdir(tmp_path / "out") == ["0.jpg"] and (tmp_path / "out" / "0.jpg").read_bytes() == before


def test_the_config_may_have_a_model_and_a_mapper_alone(folder, predict, tmp_path):
    """And no train: the device is found, the pictures go where --output says."""
    text = (folder / "plain.py").read_text()
    shutil.copy(folder / "plain.py", tmp_path)
    (tmp_path / "short.py").write_text(text.split("train = d2kd.get_config")[0] + PLAIN)
    assert predict(folder / "0.png", *EVERYTHING, config=tmp_path / "short.py", weights="student.pth")


def test_a_threshold_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main(["--config-file", "x.py", "--weights", "x.pth", "x.png", "--score-threshold", "30"])
    assert "--score-threshold is 30.0, expected a number from 0 to 1" in capsys.readouterr().err
