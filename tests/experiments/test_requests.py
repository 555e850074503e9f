"""Whether a folder holds the run that is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2kd.config import ALONE, CONFIG
from d2kd.data import register_labelled
from d2kd.data.digits import dataset, prepare_digits, register_digits
from d2kd.experiments import JobError, plan_run
from d2kd.experiments.requests import check_request, request
from tests.data.labelled import CLASSES, write_labelled
from tests.experiments.small import STUDENT, experiment


def test_request_is_stable_and_knows_what_matters(tmp_path):
    crosskd = request(plan_run(experiment(tmp_path), STUDENT, CONFIG, 0))
    code = f"""
import json
from pathlib import Path
from d2kd.experiments.plan import Experiment, plan_run
from d2kd.experiments.requests import request
m = Experiment(({STUDENT!r},), Path("elsewhere"), ("config",), (0,))
print(json.dumps(request(plan_run(m, {STUDENT!r}, "config", 0))))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout)
    assert {**found, "annotations_sha256": None} == {**crosskd, "annotations_sha256": None}
    for changes in (dict(overrides=("optimizer.lr=1e-4",)), dict(max_iter=8)):
        other = request(plan_run(experiment(tmp_path, **changes), STUDENT, CONFIG, 0))
        assert other["config_sha256"] != crosskd["config_sha256"]


def test_objects_of_a_config_are_compared_without_their_addresses(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from d2kd import get_config\ncfg = get_config('digits/fcos_crosskd.py')\n"
        "model, train, dataloader = cfg.model, cfg.train, cfg.dataloader\n"
        "class Own:\n    pass\n"
        "from omegaconf import OmegaConf\n"
        "dataloader.train.own = OmegaConf.create({'x': Own()}, flags={'allow_objects': True})\n"
    )
    first, second = (request(plan_run(experiment(tmp_path), str(mine), CONFIG, 0)) for _ in range(2))
    assert first == second


def test_the_metric_of_the_best_checkpoint_may_change(tmp_path):
    first, second = (
        request(plan_run(experiment(tmp_path, overrides=overrides), STUDENT, CONFIG, 0))
        for overrides in ((), ("train.best_metric=speed", "train.vis_period=10"))
    )
    assert first == second


def test_the_order_of_overrides_is_no_other_run(tmp_path):
    overrides = ("optimizer.lr=1e-3", "train.log_period=3")
    run, same = (plan_run(experiment(tmp_path, overrides=x), STUDENT, ALONE, 0) for x in (overrides, overrides[::-1]))
    run.folder.mkdir(parents=True)
    (run.folder / "request.json").write_text(json.dumps(request(run)))
    assert check_request(same)["overrides"][-2:] == ["train.log_period=3", "optimizer.lr=1e-3"]
    with pytest.raises(JobError, match="its overrides were optimizer.lr=1e-3, now none"):
        check_request(plan_run(experiment(tmp_path, overrides=overrides[1:]), STUDENT, ALONE, 0))


def test_other_labels_of_ones_own_are_another_run(tmp_path):
    """Those that an evaluation has converted, and dated, are not looked at."""
    run = plan_run(experiment(tmp_path), STUDENT, CONFIG, 0)
    images, labels = write_labelled("yolo", tmp_path)
    for name in ("digits_train", "digits_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        register_labelled(name, format="yolo", images=images, annotations=labels, classes=CLASSES)
    try:
        before = request(run)
        MetadataCatalog.get("digits_val").json_file = str(labels / "classes.txt")
        assert request(run) == before
        (labels / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
        assert request(run)["annotations_sha256"].keys() == before["annotations_sha256"].keys()
        assert request(run)["annotations_sha256"] != before["annotations_sha256"]
    finally:
        for name in ("digits_train", "digits_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)


def test_annotations_of_images_without_labels_count(tmp_path, monkeypatch):
    """Which images there are is in them."""
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_digits(prepare_digits())
    more = "+dataloader.train.unlabeled={_target_:d2kd.data.digits.get_digits,names:[digits_test]}"
    run = plan_run(experiment(tmp_path, overrides=(more,)), STUDENT, CONFIG, 0)
    assert set(request(run)["annotations_sha256"]) == {"digits_train", "digits_test", "digits_val"}


def test_other_annotations_are_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 2})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_digits(prepare_digits())
    run = plan_run(experiment(tmp_path), STUDENT, CONFIG, 0)
    run.folder.mkdir(parents=True)
    wanted = check_request(run)
    assert set(wanted["annotations_sha256"]) == {"digits_train", "digits_val"}
    (run.folder / "request.json").write_text(json.dumps(wanted))
    assert check_request(run) == wanted
    file = tmp_path / "digits/annotations/digits_train.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(JobError, match="annotations of digits_train.* have changed"):
        check_request(run)


def test_other_files_that_a_run_starts_from_are_another_run(tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"some")
    start = (f"train.init_checkpoint='{weights}?matching_heuristics=True'",)
    run = plan_run(experiment(tmp_path, overrides=start), STUDENT, ALONE, 0)
    run.folder.mkdir(parents=True)
    wanted = check_request(run)
    (run.folder / "request.json").write_text(json.dumps({**wanted, "git": None}))
    assert check_request(run) == wanted
    weights.write_bytes(b"others")
    with pytest.raises(JobError, match="holds another run: the file of train.init_checkpoint has changed since"):
        check_request(run)
    weights.unlink()  # what is not there is not compared
    assert check_request(run)["files_sha256"] == {}
