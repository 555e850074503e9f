import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2kd.cli import demo
from d2kd.config import ALONE, CONFIG
from d2kd.data.digits import dataset
from d2kd.experiments import TEACHER, plan_run, plan_teacher, results, stretched, training_jobs

FAKE = Path(__file__).with_name("fake_train_net.py")
LONGER = stretched(CONFIG)


def result(ap, **changes):
    values = {"bbox/AP": ap, "bbox/AP50": ap + 20, "bbox/AP75": ap + 2, "bbox/APs": ap - 3, "bbox/APm": None}
    costs = {"parameters": 180_000, "max_iter": 800, "seconds_per_iteration": 0.04, "cost_seconds": 32.0}
    curve = [[100 * k, 4.0 * k, ap * k / 8] for k in range(1, 9)]
    return {"values": values, **costs, "curve": curve, **changes}


def four(alone=30.0, longer=34.0, distilled=36.0):
    return {
        TEACHER: result(60.0, parameters=830_000, seconds_per_iteration=None, cost_seconds=None),
        ALONE: result(alone),
        LONGER: result(longer, max_iter=1200, cost_seconds=48.0),
        CONFIG: result(distilled, cost_seconds=48.0, seconds_per_iteration=0.06),
    }


def test_table_has_four_rows_and_what_exists():
    lines = demo.demo_table(four()).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][1:5] == ["AP", "AP50", "AP75", "APs"] and "APm" not in cells[0]
    assert [row[0] for row in cells[2:]] == list(demo.LABELS.values())
    rows = {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}
    assert rows["teacher"]["training CPU s"] == rows["teacher"]["s/it"] == "-"
    assert rows["teacher"]["parameters"] == "0.83 M"
    longer = rows["student alone (stretched)"]
    assert (longer["AP"], longer["iterations"], longer["training CPU s"]) == ("34.0", "1200", "48")
    assert rows["student distilled (CrossKD)"]["s/it"] == "0.060"


@pytest.mark.parametrize(
    "alone, longer, distilled, gain, at_equal_cost",
    [
        (30.0, 34.0, 36.04, "+6.0 AP (30.0 -> 36.0)", "reaches 34.0 AP: the distilled one is 2.0 AP above that."),
        (30.0, 37.0, 36.0, "+6.0 AP (30.0 -> 36.0)", "1.0 AP above the distilled one, so this run shows no gain"),
        (30.0, 36.04, 35.96, "+6.0 AP (30.0 -> 36.0)", "as much as the distilled one, so this run shows no gain"),
        (30.0, 34.0, 29.5, "-0.5 AP (30.0 -> 29.5)", "4.5 AP above the distilled one, so this run shows no gain"),
    ],
)
def test_conclusions_say_what_the_numbers_say(alone, longer, distilled, gain, at_equal_cost):
    equal_iterations, equal_cost, schedule, caveat = demo.conclusions(four(alone, longer, distilled))
    assert "At equal iterations (800)" in equal_iterations and gain in equal_iterations
    assert "for 1.50 times the training cost" in equal_iterations
    assert "(1200 iterations)" in equal_cost and at_equal_cost in equal_cost
    assert f"{alone / 4:+.1f} AP (val)" in schedule
    assert "One seed (0)" in caveat and "digits_test" in caveat


class Detector(torch.nn.Module):
    def forward(self, batch):
        count = demo.SHEET_BOXES + 3
        found = Instances((96, 96))
        found.pred_boxes = Boxes(torch.arange(4 * count).reshape(count, 4).float())
        found.pred_classes = torch.arange(count) % 2
        # The second is below the threshold.
        found.scores = torch.tensor([0.5, demo.SHEET_SCORE - 0.1] + [0.6 + 0.01 * i for i in range(count - 2)])
        return [{"instances": found} for _ in batch]


def test_detect_keeps_the_best_with_class_names():
    images = demo.detect(Detector(), [{}, {}], ["zero", "one"])
    assert len(images) == 2 and len(images[0]) == demo.SHEET_BOXES
    best = images[0][0]
    count = demo.SHEET_BOXES + 3
    assert best.xyxy == tuple(range(4 * count - 4, 4 * count)) and best.name == ["zero", "one"][(count - 1) % 2]
    scores = [box.score for box in images[0]]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0.6


@pytest.fixture
def small_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 8})  # the whole data
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def save_weights(run, folder):
    DetectionCheckpointer(instantiate(run.load_config().model), str(folder)).save("model_final")


def test_sheet_shows_ground_truth_in_its_place(tmp_path, small_data, monkeypatch):
    experiment = demo.demo_experiment(tmp_path, max_iter=8)
    for method in (ALONE, CONFIG):
        run = plan_run(experiment, demo.STUDENT, method, 0)
        run.folder.mkdir(parents=True)
        save_weights(run, run.folder)
    checkpoint, teacher = plan_teacher(experiment, demo.STUDENT)
    Path(checkpoint).parent.mkdir(parents=True)
    save_weights(teacher, Path(checkpoint).parent)
    drawn = {}
    monkeypatch.setattr(demo, "draw_sheet", lambda path, images, columns, caption: drawn.update(i=images, c=columns))
    demo.write_sheet(experiment, tmp_path / "sheet.png")
    assert list(drawn["c"]) == ["ground truth", "student alone", "student distilled (CrossKD)", "teacher"]
    assert [len(rows) for rows in drawn["c"].values()] == [8] * 4
    there = json.loads((tmp_path / "data/annotations/digits_test.json").read_text())
    assert len(there["images"]) == 8
    names = {category["id"]: category["name"] for category in there["categories"]}
    first = there["annotations"][0]
    x, y, width, height = first["bbox"]
    box = drawn["c"]["ground truth"][0][0]
    assert box.xyxy == (x, y, x + width, y + height) and box.name == names[first["category_id"]]
    with Image.open(tmp_path / "data/test/000001.jpg") as image:
        np.testing.assert_array_equal(drawn["i"][0], np.asarray(image.convert("RGB")))


@pytest.fixture
def fake_trainings(tmp_path, small_data, monkeypatch):
    """The demo with trainings that take no time; returns what was trained so far: (run, train.max_iter)."""
    (tmp_path / "plan.json").write_text(json.dumps({"fcos_small_crosskd config": {"cpu": 1.5}}))
    calls = tmp_path / "calls"
    monkeypatch.setenv("FAKE_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setenv("FAKE_CALLS", str(calls))
    monkeypatch.setattr(training_jobs, "TRAIN", (str(FAKE),))
    for name in ("evaluate_student", "evaluate_teacher"):
        monkeypatch.setattr(results, name, lambda *_: {"bbox/AP": 31.0})
    monkeypatch.setattr(results, "load_teacher", lambda cfg: (None, 800_000))
    monkeypatch.setattr(demo, "write_sheet", lambda experiment, path: path.touch())

    def trained():
        lines = map(json.loads, calls.read_text().splitlines())
        return [(line["run"], line["options"].get("train.max_iter")) for line in lines]

    return trained


def test_the_demo_runs_its_stages_once(tmp_path, fake_trainings, capsys):
    student = "fcos_small_crosskd"
    assert demo.main([]) == 0
    trained = fake_trainings()
    assert sorted(trained[:2]) == [(f"{student} alone 0", "2000"), ("fcos_teacher config 0", None)]
    assert trained[2:] == [(f"{student} config 0", "2000"), (f"{student} alone 0", "3000")]
    printed = capsys.readouterr().out
    written = (tmp_path / "output/demo/results.md").read_text()
    assert "minutes" in printed and written.split("\nMade by")[0] in printed and demo.CUT not in printed
    assert "At equal cost, the student alone (3000 iterations) reaches 31.0 AP: as much" in written
    assert "Made by `d2kd demo`" in written
    content = json.loads((tmp_path / "output/demo/results.json").read_text())
    assert [run["method"] for run in content["runs"]] == [TEACHER, ALONE, LONGER, CONFIG]
    assert {path.name for path in (tmp_path / "output/demo").glob("*.png")} == {"curves.png", "sheet.png"}

    assert demo.main([]) == 0
    assert len(fake_trainings()) == 4
    assert capsys.readouterr().out.count("already done") == 3  # the students: no run needs the teacher


def test_a_short_demo_leaves_nothing_that_a_whole_one_takes(tmp_path, fake_trainings, capsys):
    assert demo.main(["--max-iter", "16"]) == 0
    short = fake_trainings()
    assert ("fcos_teacher config 0", "16") in short and len(short) == 4
    printed = capsys.readouterr().out
    assert printed.count(demo.CUT) == 2 and "At equal" not in printed and "144 images" in printed
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"demo_16"} and not Path("datasets").exists()
    assert demo.main(["--output", "output/demo_16"]) == 2  # the students are others
    assert "holds another run" in capsys.readouterr().err
    assert demo.main([]) == 0
    assert sorted(fake_trainings()[4:6]) == [("fcos_small_crosskd alone 0", "2000"), ("fcos_teacher config 0", None)]
    assert json.loads(Path("datasets/digits/manifest.json").read_text())["images"] == dataset.SIZES


@pytest.mark.parametrize(
    "max_iter, teacher, images", [(1, 1, [8, 8, 8]), (20, 20, [160, 8, 8]), (9999, 5000, [8000, 400, 400])]
)
def test_max_iter_bounds_the_teacher_and_the_data(tmp_path, max_iter, teacher, images):
    experiment = demo.demo_experiment(tmp_path, max_iter)
    checkpoint, run = plan_teacher(experiment, demo.STUDENT)
    assert checkpoint == str(tmp_path / "teacher/model_final.pth") and run.folder == tmp_path / "teacher"
    student = plan_run(experiment, demo.STUDENT, CONFIG, 0)
    assert (run.max_iter, student.max_iter) == (teacher, max_iter)
    for cfg in (run.load_config(), student.load_config()):
        for node in (cfg.dataloader.train.dataset, cfg.dataloader.test.dataset):
            assert node.root == str(tmp_path / "data") and list(node.sizes.values()) == images


def test_a_failed_stage_ends_the_demo_without_a_table(tmp_path, small_data, monkeypatch, capsys):
    monkeypatch.setattr(demo, "run_jobs", lambda jobs, environments: ["distilled"])
    assert demo.main(["--max-iter", "16"]) == 1
    assert "not complete" in capsys.readouterr().err
