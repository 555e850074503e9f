"""d2kd compare on a config of one's own, outside a clone, with real trainings."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.own_project import write_project

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return folder


def compare(project, *argv):
    """`d2kd compare`, typed in the project's folder: relative paths are relative to it."""
    command = [sys.executable, "-W", "ignore", "-m", "d2kd", "compare", *argv, "--seeds", "0", "--max-iter", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TINY_DATASET": "data", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_methods_are_compared_on_a_config_of_ones_own(project):
    argv = ["--config-file", "mine.py", "--methods", "alone", "config", "bckd", "train.clip_grad=null"]
    code, out, err = compare(project, *argv, "--report", "dataloader.test.batch_size=3")
    assert code == 0, out + err
    assert {path.name for path in project.iterdir()} >= {"output", "mine.py"}
    results = json.loads((project / "output/compare/results.json").read_text())
    assert results["command"].startswith("d2kd compare --config-file mine.py --methods alone config bckd")
    runs = {run["method"]: run for run in results["runs"]}
    assert list(runs) == ["teacher", "alone", "bckd", "config"]
    for method, run in runs.items():
        assert run["max_iter"] == 2 and run["cost_seconds"] > 0 and run["device"] == "cpu", method
        assert run["metrics"].keys() >= {"bbox/AP", "bbox/AP50", "bbox/AP-class1"}
        assert run["values"] == run["reported"]["dataloader.test.batch_size=3"] == pytest.approx(run["metrics"])
    assert runs["config"]["parameters"] == runs["alone"]["parameters"] == runs["teacher"]["parameters"]
    assert runs["alone"]["git"] is None  # this folder is in no repository
    losses = {
        method: {
            key
            for line in (project / f"output/compare/mine/{method}/seed0/metrics.json").read_text().splitlines()
            for key in json.loads(line)
            if key.startswith("loss_kd_")
        }
        for method in ("alone", "config", "bckd")
    }
    assert losses == {"alone": set(), "config": {"loss_kd_mine"}, "bckd": {"loss_kd_bckd_cls", "loss_kd_bckd_loc"}}
    table = (project / "output/compare/results.md").read_text()
    header = table.splitlines()[0]
    assert "training CPU s" in header and " AP50 " in header and "AP-class1" not in header

    # Its commands train as they stand.
    argv = shlex.split(runs["bckd"]["command"])
    assert argv[:6] == ["d2kd", "train", "--config-file", "mine.py", "--method", "bckd"]
    assert argv[-1] == "train.output_dir='output/compare/mine/bckd/seed0'"


def test_an_evaluator_of_ones_own(project):
    (project / "output/teacher").mkdir(parents=True, exist_ok=True)
    argv = ["--config-file", "counted.py", "--methods", "alone", "--output", "output/counted"]
    code, out, err = compare(project, *argv, "train.best_metric=found/share")
    assert code == 0, out + err
    (run,) = json.loads((project / "output/counted/results.json").read_text())["runs"]
    assert run["metrics"] == {"found/images": 30.0, "found/share": 0.5} and run["curve"][-1][2] == 0.5
    assert "found/share" in out and "found/images" in out and "bbox" not in out


def test_a_dataset_that_is_not_there_ends_the_command_in_a_sentence(project):
    code, out, err = compare(project, "--config-file", "mine.py", "dataloader.test.dataset.names=tiny:elsewhere")
    assert code == 2 and out == ""
    sentence = "d2kd compare: mine.py: dataloader.test.dataset.names names the dataset 'tiny:elsewhere', which is not"
    assert err.splitlines()[-1].startswith(sentence) and "Traceback" not in err
