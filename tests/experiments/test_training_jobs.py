"""The runs of an experiment as jobs."""

import json
import subprocess
import sys

import pytest
import torch
from detectron2.config import LazyConfig

from d2kd.config import ALONE, CONFIG
from d2kd.data.digits import dataset
from d2kd.experiments import JobError, build_jobs, environments, git_state, plan_run, stretched
from d2kd.experiments.training_jobs import train_command
from tests.experiments.small import STUDENT, experiment


@pytest.fixture(autouse=True)
def small_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the teachers are not here
    monkeypatch.setattr(dataset, "SIZES", {"train": 2, "val": 2, "test": 2})


def test_students_share_a_teacher(tmp_path):
    configs = (STUDENT, "digits/fcos_small_crosskd.py")
    jobs = build_jobs(experiment(tmp_path, configs=configs, methods=(CONFIG, "bckd")))
    assert [(job.name, job.needs) for job in jobs] == [
        ("teacher of fcos_crosskd", ()),
        ("fcos_crosskd config seed 0", ("teacher of fcos_crosskd",)),
        ("fcos_crosskd bckd seed 0", ("teacher of fcos_crosskd",)),
        ("fcos_small_crosskd config seed 0", ("teacher of fcos_crosskd",)),
        ("fcos_small_crosskd bckd seed 0", ("teacher of fcos_crosskd",)),
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods": (ALONE, "nokd")}, "Unknown method 'nokd'"),
        ({"report": ("dataloader.test.datset.names=digits_test",)}, "--report sets dataloader.test.datset.names, but"),
        ({"overrides": ("dataloader.test.dataset.names=digits_tset",)}, "digits_tset.* is not registered"),
        (
            {"report": ("dataloader.test.dataset.names=digits_test", "dataloader.evaluator.dataset_name=digits_val")},
            "dataset_name is 'digits_val', but dataloader.test reads digits_test: set both to one dataset",
        ),
        ({"configs": ("digits/fcos_teacher.py",)}, "digits/fcos_teacher.py has no losses of its own"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        build_jobs(experiment(tmp_path, **changes))
    assert not list(tmp_path.glob("fcos*"))


def project(tmp_path, name, metric="bbox/AP"):
    path = tmp_path / name
    path.write_text(
        "from d2kd import get_config\ncfg = get_config('digits/fcos_crosskd.py')\n"
        f"model, train, dataloader = cfg.model, cfg.train, cfg.dataloader\ntrain.best_metric = {metric!r}\n"
    )
    return path


def test_configs_of_several_metrics_are_refused_before_anything_runs(tmp_path):
    configs = (str(project(tmp_path, "one.py")), str(project(tmp_path, "two.py", "bbox/AP50")))
    with pytest.raises(ValueError, match="train.best_metric means bbox/AP in .*, bbox/AP50 in .*two.py, which cannot"):
        build_jobs(experiment(tmp_path, configs=configs, methods=(ALONE,)))


@pytest.mark.parametrize(
    "after, message",
    [
        ("train.max_iter = 7", "what .*mine.py says has changed since this comparison began: undo that"),
        ("train = (", "mine.py cannot be read"),
    ],
)
def test_a_config_that_changes_meanwhile_fails_the_runs_to_come(tmp_path, after, message):
    mine = project(tmp_path, "mine.py")
    plan = {"configs": (str(mine),), "methods": (ALONE, "bckd"), "teacher_config": "digits/fcos_teacher.py"}
    jobs = build_jobs(experiment(tmp_path, **plan, stretch=True))
    mine.write_text(f"{mine.read_text()}{after}\n")
    assert len(jobs) == 4
    for job in jobs:
        if not job.name.startswith("teacher"):
            with pytest.raises(JobError, match=message):
                job.prepare()
    assert not list(tmp_path.glob("mine/*/seed0/request.json"))


def test_a_teacher_that_is_gone_is_not_trained_again_for_what_is_done(tmp_path):
    plan = experiment(tmp_path)
    for method in (ALONE, CONFIG):
        run = plan_run(plan, STUDENT, method, 0)
        run.folder.mkdir(parents=True)
        run.result_file.write_text(json.dumps({"metric": "bbox/AP"}))
    assert [job.name for job in build_jobs(plan)] == ["fcos_crosskd alone seed 0", "fcos_crosskd config seed 0"]
    plan_run(plan, STUDENT, CONFIG, 0).result_file.unlink()
    assert build_jobs(plan)[0].name == "teacher of fcos_crosskd"


def test_a_folder_with_a_quote_reaches_the_config(tmp_path):
    run = plan_run(experiment(tmp_path / "it's here", overrides=("optimizer.lr=1",)), STUDENT, CONFIG, 0)
    command = train_command(run, "d2kd", "train")
    assert command[:5] == ["d2kd", "train", "--config-file", STUDENT, "--resume"]
    assert command[-2] == "optimizer.lr=1"
    changed = LazyConfig.apply_overrides(run.load_config(), [command[-1]])
    assert changed.train.output_dir == str(run.folder)


@pytest.mark.parametrize("method, given", [(ALONE, ALONE), ("bckd", "bckd"), (stretched("bckd"), ALONE)])
def test_the_command_has_the_method(tmp_path, method, given):
    command = train_command(plan_run(experiment(tmp_path), STUDENT, method, 0), sys.executable)
    assert command[3:5] == ["--method", given]


def test_each_gpu_has_one_training(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert environments("cpu", 3) == [{}, {}, {}]
    assert environments("cuda", 2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert environments("cuda", 2) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    with pytest.raises(ValueError, match="--processes is 3, but 2 GPUs"):
        environments("cuda", 3)


def test_a_result_has_the_commit_that_its_run_was_begun_at(tmp_path):
    """Each training is a new process, of the code as it is then."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "mine.py").write_text(
        "from d2kd import get_config\ncfg = get_config('digits/fcos_crosskd.py')\n"
        "model, train, dataloader = cfg.model, cfg.train, cfg.dataloader\n"
    )

    def git(*argv):
        identity = ["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *argv], cwd=project, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit():
        git("add", ".")
        git("commit", "--quiet", "--allow-empty", "--message", "another")
        return git("rev-parse", "HEAD")

    git("init", "--quiet")
    commit()
    (job,) = build_jobs(experiment(tmp_path, configs=(str(project / "mine.py"),), methods=(ALONE,), max_iter=8))
    (project / "losses.py").touch()
    folder = job.prepare().folder  # a run that is stopped before its first checkpoint is begun anew
    assert json.loads((folder / "request.json").read_text())["git"]["dirty"]  # by code that is in no commit
    begun = commit()
    (project / "output").mkdir()
    (project / "output" / "metrics.json").write_text("{}")  # changes no run
    job.prepare()
    (folder / "last_checkpoint").write_text("model_final.pth")
    record = {"iteration": 8, "bbox/AP": 30.0, "cost/cpu_seconds": 1.0, "cost/wall_seconds": 1.0}
    (folder / "metrics.json").write_text(json.dumps(record))
    commit()
    job.prepare()  # it goes on
    assert job.finish() == "AP 30.0 on digits_val"
    result = json.loads((folder / "result.json").read_text())
    assert result["git"] == {"commit": begun, "dirty": False} != git_state(project)
    assert "git" not in result["request"]


def test_a_run_that_is_being_trained_is_left_alone(tmp_path):
    """By another comparison, or by the training that one left behind when it was killed."""
    (job,) = build_jobs(experiment(tmp_path, methods=(ALONE,)))
    folder = tmp_path / "fcos_crosskd/alone/seed0"
    folder.mkdir(parents=True)
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    logged = "".join(json.dumps({"iteration": step, "total_loss": 1.0}) + "\n" for step in range(8))
    (folder / "metrics.json").write_text(logged)
    holds = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    argv = [sys.executable, "-c", holds, str(folder / "run.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as training:
        training.stdout.readline()
        with pytest.raises(JobError, match="alone/seed0 is in use by another run .*: wait for it"):
            job.prepare()
        training.communicate("\n")
    assert (folder / "metrics.json").read_text() == logged
    assert not (folder / "request.json").exists()
