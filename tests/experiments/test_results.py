"""Which finished runs are reported."""

import dataclasses

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.config import ALONE, CONFIG, config_path
from d2kd.data.digits import dataset, get_digits
from d2kd.experiments import TEACHER, collect, plan_run, results, stretched, write_json
from d2kd.experiments.requests import request_file
from tests.experiments.small import STUDENT, experiment, result

REPORT = ("dataloader.test.dataset.names=digits_test",)


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
