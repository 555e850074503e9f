"""What checkpoints reach, and which finished runs are reported."""

import dataclasses

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.config import ALONE, CONFIG, config_path, load_config
from d2kd.data.digits import dataset, get_digits
from d2kd.experiments import TEACHER, collect, load_student, plan_run, results, stretched, write_json
from d2kd.experiments.requests import request_file
from d2kd.experiments.results import evaluate_student, evaluate_teacher
from tests.experiments.small import STUDENT, experiment, result

REPORT = ("dataloader.test.dataset.names=digits_test",)


def test_the_saved_weights_are_evaluated_as_the_config_says(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 4, "test": 5})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = plan_run(experiment(tmp_path, overrides=("train.device=cpu",)), STUDENT, ALONE, 0).load_config()
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    loaded = load_student(cfg, tmp_path / "weights.pth")
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for split in ("val", "test"):
        cfg.dataloader.test.dataset.names = f"digits_{split}"
        metrics = evaluate_student(cfg, tmp_path / "weights.pth")
        assert {"bbox/AP", "bbox/AP50", "bbox/AP-4"} <= set(metrics) and 0 <= metrics["bbox/AP"] < 5
        assert metrics["bbox/APl"] is None  # no object of 96 x 96 pixels


def test_a_teacher_is_evaluated_as_it_would_be_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 4, "test": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    overrides = ("train.device=cpu", f"model.teacher.checkpoint={tmp_path}/teacher.pth")
    of = experiment(tmp_path, overrides=overrides)
    student = plan_run(of, STUDENT, CONFIG, 0).load_config()
    alone = load_config("digits/fcos_teacher.py", ["train.device=cpu", "model.student.test_score_thresh=0.0"])
    student.model.teacher.model.test_score_thresh = 0.0  # of random weights, so that there are detections
    torch.manual_seed(0)
    DetectionCheckpointer(instantiate(alone.model), str(tmp_path)).save("teacher")
    metrics = evaluate_teacher(student)
    assert metrics == evaluate_student(alone, tmp_path / "teacher.pth")
    # Its student may be compared by a metric of averaged weights, of which a teacher has none.
    monkeypatch.setattr(results, "evaluate", lambda *_: {"bbox": {"AP": 60.0, "APl": float("nan")}})
    student.train.ema = {"decay": 0.9}
    same = {"bbox/AP": 60.0, "bbox/APl": None}
    assert evaluate_teacher(student) == same | {f"ema/{name}": value for name, value in same.items()}


def test_an_evaluation_changes_no_annotations(tmp_path, monkeypatch):
    """Of a dataset without a file, COCOEvaluator writes one, and names it as the dataset's."""
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    content = get_digits("digits_val")
    DatasetCatalog.register("mine", lambda: content)
    try:
        MetadataCatalog.get("mine").thing_classes = ["a", "b", "c", "d", "e"]
        mine = (f"+dataloader.evaluator.output_dir={tmp_path}", "dataloader.evaluator.dataset_name=mine")
        cfg = load_config(STUDENT, mine, method=ALONE)
        monkeypatch.setattr(results, "load_student", lambda cfg, checkpoint: None)
        monkeypatch.setattr(results, "evaluate", lambda model, loader, evaluator: {"bbox": {"AP": 1.0}})
        assert evaluate_student(cfg, "weights.pth") == {"bbox/AP": 1.0}
        assert (tmp_path / "mine_coco_format.json").is_file()
        assert MetadataCatalog.get("mine").get("json_file") is None
        assert MetadataCatalog.get("digits_val").json_file.endswith("digits_val.json")
    finally:
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")


class Finished:
    """Runs that have finished, with evaluations of no weights; ``evaluated`` are the datasets of these, in order."""

    def __init__(self, tmp_path, monkeypatch):
        self.teacher = tmp_path / "teacher.pth"
        self.teacher.touch()
        overrides = (f"model.teacher.checkpoint={self.teacher}",)
        self.experiment = experiment(tmp_path / "out", overrides=overrides)
        self.annotations = tmp_path / "digits/annotations"
        self.evaluated = []
        monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 2})
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        get_digits("digits_val")
        for name in ("evaluate_student", "evaluate_teacher"):
            monkeypatch.setattr(results, name, self.evaluate)
        monkeypatch.setattr(results, "load_teacher", lambda cfg: (None, 800_000))
        monkeypatch.setattr(results, "plan_teacher", lambda *_: (str(self.teacher), None))

    def evaluate(self, cfg, *_):
        self.evaluated.append(cfg.dataloader.test.dataset.names)
        return {"bbox/AP": 50.0}

    def add(self, method, cost, max_iter=None):
        run = plan_run(self.experiment, STUDENT, method, 0, max_iter)
        request_file(run).unlink(missing_ok=True)  # of one that was deleted
        write_json(request_file(run), results.check_request(run))
        costs = {"max_iter": run.max_iter, "cost_seconds": cost, "config_file": STUDENT}
        write_json(run.result_file, result(method, 0, 30.0, "fcos_crosskd", **costs))
        return run

    def methods(self):
        """What is reported, and how many runs are left out."""
        found, left_out = collect(self.experiment)
        return [run["method"] for run in found], left_out

    def change(self, split):
        file = self.annotations / f"digits_{split}.json"
        file.write_text(file.read_text() + " ")


@pytest.fixture
def finished(tmp_path, monkeypatch):
    return Finished(tmp_path, monkeypatch)


def test_a_stretched_run_is_paired_with_the_costs_that_it_follows_from(finished, monkeypatch):
    monkeypatch.setattr(results, "check_request", lambda run: {})  # tested elsewhere
    alone, taught = finished.add(ALONE, 80.0), finished.add("bckd", 120.0)
    finished.add(stretched("bckd"), 118.0, max_iter=round(1.5 * alone.max_iter))
    assert finished.methods() == ([TEACHER, ALONE, stretched("bckd"), "bckd"], 0)
    finished.add("bckd", 160.0)  # trained again, at another cost
    assert finished.methods() == ([TEACHER, ALONE, "bckd"], 1)
    taught.result_file.unlink()
    assert finished.methods() == ([ALONE], 1)


def test_reported_metrics_are_of_the_annotations_as_they_are(finished):
    finished.experiment = dataclasses.replace(finished.experiment, report=REPORT)
    finished.add(ALONE, 80.0)
    for _ in range(2):
        assert finished.methods() == ([ALONE], 0)
    assert finished.evaluated == ["digits_test"]  # kept
    finished.change("test")
    finished.methods()
    assert finished.evaluated == ["digits_test"] * 2


def test_a_teacher_is_evaluated_on_the_annotations_as_they_are(finished):
    finished.add(CONFIG, 120.0)
    finished.methods()
    finished.change("val")
    finished.add(CONFIG, 120.0)  # trained again
    for _ in range(2):
        assert finished.methods() == ([TEACHER, CONFIG], 0)
    assert finished.evaluated == ["digits_val"] * 2
    finished.teacher.unlink()
    assert finished.methods() == ([CONFIG], 0)


def test_runs_of_data_that_are_registered_at_their_first_use_are_reported(finished):
    """The data of another config than the experiment's."""
    finished.add(ALONE, 80.0)
    finished.experiment = dataclasses.replace(finished.experiment, configs=("digits/gfl_crosskd.py",))
    for name in ("digits_train", "digits_val", "digits_test"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert finished.methods() == ([ALONE], 0)
    assert "digits_val" in DatasetCatalog


def test_runs_of_another_config_of_the_same_name_are_left_out(finished, tmp_path):
    finished.add(ALONE, 80.0)
    mine = tmp_path / "fcos_crosskd.py"
    mine.write_text(
        "from d2kd import get_config\ncfg = get_config('digits/fcos_crosskd.py')\n"
        "model, train, dataloader, optimizer = cfg.model, cfg.train, cfg.dataloader, cfg.optimizer\n"
    )
    finished.experiment = dataclasses.replace(finished.experiment, configs=(str(mine),))
    assert finished.methods() == ([], 1)
    finished.experiment = dataclasses.replace(finished.experiment, configs=(config_path(STUDENT),))
    assert finished.methods() == ([ALONE], 0)
