"""d2kd compare: an experiment of fake trainings from the command line to the table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from d2kd.cli import compare
from d2kd.config import ALONE, CONFIG
from d2kd.data.digits import dataset
from d2kd.experiments import results, stretched, training_jobs

FAKE = Path(__file__).with_name("fake_train_net.py")
SIZES = {"train": 2, "val": 2, "test": 2}  # images of the digits
STUDENT = "digits/fcos_crosskd.py"
LONGER = stretched(CONFIG)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An experiment of fake trainings: ``run(*argv)`` is the command line, ``plan`` what the trainings do."""

    class Workplace:
        output = tmp_path / "out"
        teacher = tmp_path / "teacher"

        def plan(self, plan=None):
            (tmp_path / "plan.json").write_text(json.dumps(plan or {}))

        def calls(self):
            file = tmp_path / "calls.jsonl"
            return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

        def argv(self, *argv):
            checkpoint = f"model.teacher.checkpoint={self.teacher / 'model_final.pth'}"
            return ["--config-file", STUDENT, "--output", str(self.output), "--max-iter", "16", checkpoint, *argv]

        def run(self, *argv):
            return compare.main(self.argv(*argv))

        def results(self):
            runs = json.loads((self.output / "results.json").read_text())["runs"]
            return {(run["method"], run["seed"]): run for run in runs}

    here = Workplace()
    here.plan()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset, "SIZES", SIZES)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("FAKE_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(training_jobs, "TRAIN", (str(FAKE),))
    # The weights are fake too. What a checkpoint reaches on test: 1 AP less than on val.
    values = {"digits_val": 60.0, "digits_test": 59.0}
    for name in ("evaluate_student", "evaluate_teacher"):
        monkeypatch.setattr(results, name, lambda cfg, *_: {"bbox/AP": values[cfg.dataloader.test.dataset.names]})
    monkeypatch.setattr(results, "load_teacher", lambda cfg: (None, 800_000))
    threads = torch.get_num_threads()
    yield here
    torch.set_num_threads(threads)


def test_an_experiment_is_trained_reported_and_not_repeated(workplace, capsys):
    workplace.plan({"fcos_crosskd alone": {"ap": 30.0}, "fcos_crosskd config": {"ap": 34.0, "cpu": 1.5}})
    argv = ["--methods", "alone", "config", "--seeds", "0", "1", "--stretch"]
    assert workplace.run(*argv) == 0
    calls = [call["run"] for call in workplace.calls()]
    assert calls[0] == "fcos_teacher config 0" and len(calls) == 7
    assert {call["threads"] for call in workplace.calls()} == {"1"}

    runs = workplace.results()
    assert len(runs) == 7
    crosskd = runs[CONFIG, 1]
    assert {**crosskd["values"], "bbox/AP": 35.0, "bbox/AP50": 55.0, "bbox/APl": None} == crosskd["values"]
    assert (crosskd["cost_seconds"], crosskd["device"]) == (24.0, "cpu") and crosskd["seconds_per_iteration"] == 0.5
    assert crosskd["curve"][:2] == [[2, 3.0, 6.25], [4, 6.0, 12.5]] and crosskd["curve"][-1] == [16, 24.0, 35.0]
    assert crosskd["parameters"] == runs[ALONE, 1]["parameters"] > 100_000
    assert crosskd["command"].startswith("d2kd train --config-file digits/fcos_crosskd.py --resume train.seed=1 ")
    assert runs["teacher", 0]["max_iter"] == 16  # of the training that made it; its config says another number
    longer = runs[LONGER, 1]["command"]
    assert longer.startswith("d2kd train --config-file digits/fcos_crosskd.py --method alone --resume train.seed=1 ")
    assert crosskd["versions"]["torch"] == torch.__version__.split("+")[0] and "git" in crosskd
    assert runs[LONGER, 0]["max_iter"] == 24  # 16 x 1.5
    table = (workplace.output / "results.md").read_text()
    assert table in capsys.readouterr().out
    row = next(line for line in table.splitlines() if "| the config's losses" in line)
    assert "34.5 ± 0.7" in row and "+4.0 ± 0.0" in row
    assert "last quarter of its schedule added -7.0 ± 0.7 AP" in table  # 37.5 at three quarters, 30 and 31 at the end
    assert {path.name for path in workplace.output.glob("*.png")} == {"curves.png", "gains.png"}

    assert (
        workplace.run(*argv, "--report", "dataloader.test.dataset.names=digits_test") == 0
    )  # reported on another split without training
    assert len(workplace.calls()) == 7
    assert "already done" in capsys.readouterr().out
    tested = workplace.results()
    for run, on_val in (((CONFIG, 1), 35.0), (("teacher", 0), 60.0)):
        assert (tested[run]["values"], tested[run]["metrics"]["bbox/AP"]) == ({"bbox/AP": 59.0}, on_val)
    assert "Metrics on digits_test" in (workplace.output / "results.md").read_text()

    assert workplace.run("--methods", "alone", "config", "--seeds", "2") == 0  # a further seed joins the table
    assert len(workplace.calls()) == 9 and set(workplace.results()) >= {(CONFIG, 0), (CONFIG, 2)}


def test_processes_without_a_teacher(workplace, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert workplace.run("--methods", "alone", "--seeds", "0", "1", "--processes", "2") == 0
    assert [call["threads"] for call in workplace.calls()] == ["3", "3"]  # the user's word counts
    assert set(workplace.results()) == {(ALONE, 0), (ALONE, 1)}  # nothing is distilled: no teacher


def test_a_failed_run_is_shown_and_the_others_go_on(workplace, capsys):
    workplace.plan({"fcos_crosskd alone 0": {"fail_at": 8}})
    argv = ["--methods", "alone", "config", "--seeds", "0", "1", "--stretch"]
    assert workplace.run(*argv) == 1
    output = capsys.readouterr()
    assert "fcos_crosskd alone seed 0: FAILED, exit code 3" in output.out and "    boom: no such loss" in output.out
    assert f"fcos_crosskd {LONGER} seed 0: FAILED, not started, since it needs: fcos_crosskd alone seed 0" in output.out
    assert "2 of 7 runs failed: fcos_crosskd alone seed 0" in output.err
    done = {(CONFIG, 0), (ALONE, 1), (CONFIG, 1), (LONGER, 1), ("teacher", 0)}
    assert set(workplace.results()) == done

    workplace.plan()  # mended: only what is missing runs, from where it stopped
    before = len(workplace.calls())
    assert workplace.run(*argv) == 0
    calls = [(call["run"], call["start"], call["options"]["train.max_iter"]) for call in workplace.calls()[before:]]
    assert calls == [("fcos_crosskd alone 0", 8, "16"), ("fcos_crosskd alone 0", 0, "16")]
    assert "fcos_crosskd alone seed 0: started from iteration 8" in capsys.readouterr().out
    assert workplace.results()[ALONE, 0]["cost_seconds"] == 16.0


def test_without_its_teacher_a_student_does_not_start(workplace, capsys):
    workplace.plan({"fcos_teacher config": {"fail_at": 5}})
    argv = ["--methods", "alone", "config", "--seeds", "0"]
    assert workplace.run(*argv) == 1
    assert [call["run"] for call in workplace.calls()] == ["fcos_teacher config 0", "fcos_crosskd alone 0"]
    workplace.plan()
    assert workplace.run(*argv) == 0
    assert [(call["run"], call["start"]) for call in workplace.calls()[2:]] == [
        ("fcos_teacher config 0", 6),  # resumed, not restarted
        ("fcos_crosskd config 0", 0),
    ]


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_is_refused_before_anything_runs(workplace, finished, capsys):
    workplace.plan({"fcos_crosskd alone": {} if finished else {"fail_at": 3}})
    argv = ["--methods", "alone", "--seeds", "0"]
    assert workplace.run(*argv) == (0 if finished else 1)
    capsys.readouterr()
    assert workplace.run("--methods", "alone", "config", "--seeds", "1", "0", "optimizer.lr=1e-4") == 2
    refusal = "d2kd compare: .*seed0 holds another run: its overrides were .* Delete it, or choose another --output\n"
    assert re.fullmatch(refusal, capsys.readouterr().err)
    assert len(workplace.calls()) == 1


def test_students_of_another_teacher_are_refused(workplace, capsys):
    argv = ["--methods", "alone", "config", "--seeds", "0"]
    assert workplace.run(*argv) == 0
    (workplace.teacher / "model_final.pth").write_bytes(b"other weights, of another length")
    assert workplace.run(*argv) == 2
    assert "config/seed0 holds another run: its teacher has other weights" in capsys.readouterr().err


def test_runs_of_other_overrides_are_left_out_of_the_table(workplace, capsys):
    assert workplace.run("--methods", "alone", "--seeds", "0") == 0
    assert workplace.run("--methods", "alone", "--seeds", "1", "optimizer.lr=1e-4") == 0
    assert set(workplace.results()) == {(ALONE, 1)}
    assert "1 finished runs with other overrides" in (workplace.output / "results.md").read_text()


def test_ctrl_c_ends_the_trainings(workplace):
    workplace.plan({"fcos_crosskd alone": {"hang_at": 4}})
    code = f"""
import sys
from d2kd.cli import compare
from d2kd.data.digits import dataset
from d2kd.experiments import training_jobs
training_jobs.TRAIN, dataset.SIZES = ({str(FAKE)!r},), {SIZES}
sys.exit(compare.main(sys.argv[1:]))
"""
    argv = workplace.argv("--methods", "alone", "--seeds", "0", "1", "--processes", "2")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *argv],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while len(workplace.calls()) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    pids = [call["pid"] for call in workplace.calls()]
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=200)[1]
    assert len(pids) == 2
    assert process.returncode == 130 and "goes on where this one stopped" in errors and "Traceback" not in errors
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["train.seed=3"], "use --seeds"),
        (["train.max_iter=3"], "use --max-iter"),
        (["model.losses.crosskd_cls.weight=3"], "use --methods"),
        (["--stretch", "--methods", "crosskd"], "--stretch needs 'alone'"),
        (["--processes", "0"], "at least 1"),
        (["--seeds", "0", "--", "what"], "'what' is no key=value override"),
        (["--report", "digits_test"], "expected key=value of dataloader.test"),
        (["--report", "optimizer.lr=1"], "overrides for training come before --report"),
    ],
)
def test_command_lines_that_mean_nothing(argv, message, capsys):
    with pytest.raises(SystemExit):
        compare.parse_args(["--config-file", STUDENT, *argv])
    assert message in capsys.readouterr().err


def test_overrides_may_follow_lists():
    report = ["--report", "dataloader.test.batch_size=1", "dataloader.evaluator.tasks=[bbox]"]
    argv = ["--config-file", "a.py", "b.py", "--seeds", "0", "1", "optimizer.lr=1e-4", *report, "--methods", "alone"]
    args = compare.parse_args([*argv, "a.b=x=y"])
    parsed = compare.experiment_of(args)
    assert (parsed.configs, parsed.seeds, parsed.methods) == (("a.py", "b.py"), (0, 1), ("alone",))
    assert args.processes == 1
    assert parsed.overrides == ("optimizer.lr=1e-4", "a.b=x=y") and parsed.report == tuple(report[1:])


def test_what_is_not_there_is_named(workplace, capsys):
    assert workplace.run("--methods", "alone", "nokd") == 2
    assert capsys.readouterr().err.startswith("d2kd compare: Unknown method 'nokd'")
    assert compare.main(["--config-file", "digits/fcos_croskd.py"]) == 2
    assert re.fullmatch("d2kd compare: There is no file .*did you mean digits/fcos_cross.*\n", capsys.readouterr().err)
    assert workplace.calls() == []


def test_a_metric_that_the_evaluator_lacks_is_named_and_can_be_changed(workplace, capsys):
    metrics = {"found/share": 0.5, "found/speed": 120.0}
    workplace.plan({"fcos_crosskd alone": {"metrics": metrics}, "fcos_crosskd config": {"metrics": metrics}})
    argv = ["--seeds", "0", "--methods", "alone"]
    assert workplace.run(*argv) == 1
    output = capsys.readouterr().out
    assert (
        "fcos_crosskd alone seed 0: FAILED, train.best_metric is 'bbox/AP', but the evaluator returns found/share, "
        "found/speed: set it to one of these\n"
    ) in output
    assert output.endswith("\nNo run is finished, so there is nothing to report.\n")  # and no files are named
    assert workplace.run(*argv, "train.best_metric=found/share") == 0  # the same run
    assert workplace.calls()[1]["start"] == 16
    assert workplace.results()[ALONE, 0]["values"] == metrics


def test_configs_are_compared_side_by_side(workplace, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from d2kd import get_config\ncfg = get_config('digits/gfl_ld.py')\n"
        "model, train, dataloader = cfg.model, cfg.train, cfg.dataloader\n"
    )
    (workplace.teacher).mkdir()
    (workplace.teacher / "model_final.pth").touch()
    argv = ["--config-file", "digits/fcos_crosskd.py", "mine.py", "--seeds", "0"]
    assert workplace.run(*argv) == 0
    runs = json.loads((workplace.output / "results.json").read_text())["runs"]
    methods = ["teacher", ALONE, CONFIG]
    expected = [(config, method) for config in ("fcos_crosskd", "mine") for method in methods]
    assert [(run["config"], run["method"]) for run in runs] == expected
    assert runs[3]["max_iter"] is runs[3]["cost_seconds"] is None  # nobody knows how mine's was trained
    assert [call["run"] for call in workplace.calls()][1::2] == ["fcos_crosskd config 0", "mine config 0"]
