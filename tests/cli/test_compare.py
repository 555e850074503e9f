import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate

from d2kd.cli import compare
from d2kd.data import digits
from d2kd.experiments import results
from d2kd.experiments.jobs import Command, Job, Progress, run_jobs
from d2kd.experiments.plan import Matrix, plan_run, plan_runs, plan_teacher, request, teacher_is_ready
from d2kd.experiments.report import ALONE, METRICS, stretched

FAKE = Path(__file__).with_name("fake_train_net.py")
ROOT = Path(compare.__file__).parent.parent


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A comparison of fake trainings: ``run(*argv)`` is the command line, ``plan`` what the trainings do."""

    class Workplace:
        output = tmp_path / "out"
        teacher = tmp_path / "teacher"

        def plan(self, **plan):
            (tmp_path / "plan.json").write_text(json.dumps(plan))

        def calls(self):
            file = tmp_path / "calls.jsonl"
            return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

        def argv(self, *argv):
            checkpoint = f"model.teacher.checkpoint={self.teacher / 'model_final.pth'}"
            return ["--output", str(self.output), "--max-iter", "16", *argv, checkpoint]

        def run(self, *argv):
            return compare.main(self.argv(*argv))

        def results(self):
            runs = json.loads((self.output / "results.json").read_text())["runs"]
            return {(run["method"], run["seed"]): run for run in runs}

    here = Workplace()
    here.plan()
    monkeypatch.chdir(tmp_path)  # compare.py changes the folder: this brings it back
    monkeypatch.setenv("FAKE_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.jsonl"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(compare, "TRAIN", (str(FAKE),))
    monkeypatch.setattr(compare, "prepare_digits", lambda: None)
    # The weights are fake too. What a checkpoint reaches on test: 1 AP less than on val.
    values = {"val": 60.0, "test": 59.0}
    metrics = {key: None for key in METRICS}
    monkeypatch.setattr(results, "evaluate_checkpoint", lambda cfg, ckpt, split: {**metrics, "AP": values[split]})
    threads = torch.get_num_threads()
    yield here
    torch.set_num_threads(threads)


def matrix(tmp_path, **changes):
    base = {"configs": ROOT / "configs/digits", "output": tmp_path, "detectors": ("fcos",), "seeds": (0,)}
    return Matrix(**{**base, "methods": (ALONE, "crosskd"), **changes})


def test_plan_pairs_seeds_and_evaluates_at_three_quarters(tmp_path):
    runs = plan_runs(matrix(tmp_path, detectors=("fcos", "retinanet"), seeds=(0, 1), max_iter=800, overrides=("a=1",)))
    names = [(run.detector, run.method, run.seed) for run in runs]
    assert names[:5] == [
        ("fcos", ALONE, 0),
        ("fcos", "crosskd", 0),
        ("retinanet", ALONE, 0),
        ("retinanet", "crosskd", 0),
        ("fcos", ALONE, 1),
    ]
    assert len(runs) == 8 and len({run.folder for run in runs}) == 8
    for run in runs:
        assert run.overrides[:3] == (f"train.seed={run.seed}", "train.max_iter=800", "train.eval_period=100")
        assert run.overrides[-1] == "a=1" and run.folder == tmp_path / run.detector / run.method / f"seed{run.seed}"
    assert [run.config.name for run in runs[:2]] == ["fcos_baseline.py", "fcos_crosskd.py"]


def test_plan_takes_the_configs_schedule_and_names_missing_configs(tmp_path):
    run = plan_run(matrix(tmp_path), "fcos", "crosskd", 0)
    assert run.max_iter == run.load_config().train.max_iter > 0
    with pytest.raises(ValueError, match="fcos_nokd.py.*fcos_crosskd.py"):
        plan_run(matrix(tmp_path), "fcos", "nokd", 0)


def test_every_config_finds_its_teacher(tmp_path):
    for path in sorted((ROOT / "configs/digits").glob("*_crosskd.py")):
        detector = path.stem.removesuffix("_crosskd")
        run, checkpoint = plan_teacher(matrix(tmp_path), detector)
        assert run.load_config().train.output_dir == str(Path(checkpoint).parent) == str(run.folder)
        assert run.config.stem.endswith("_teacher") and run.config.stem.startswith(detector.split("_")[0])


def test_request_is_stable_and_knows_what_matters(tmp_path):
    crosskd = request(plan_run(matrix(tmp_path), "fcos", "crosskd", 0))
    code = f"""
import json, sys
from pathlib import Path
from d2kd.experiments.plan import Matrix, plan_run, request
m = Matrix(Path({str(ROOT / "configs/digits")!r}), Path("elsewhere"), ("fcos",), ("crosskd",), (0,))
print(json.dumps(request(plan_run(m, "fcos", "crosskd", 0))))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == crosskd
    other = request(plan_run(matrix(tmp_path, overrides=("optimizer.lr=1e-4",)), "fcos", "crosskd", 0))
    assert other["config_sha256"] != crosskd["config_sha256"]


def test_teacher_is_ready_only_when_its_checkpoint_is_whole(tmp_path):
    final, last = tmp_path / "model_final.pth", tmp_path / "last_checkpoint"
    assert not teacher_is_ready(str(final))
    final.write_bytes(b"half")
    last.write_text("model_0000499.pth")
    assert not teacher_is_ready(str(final))
    last.write_text("model_final.pth")
    assert teacher_is_ready(str(final))
    last.unlink()  # copied here by a person
    assert teacher_is_ready(str(final))
    assert teacher_is_ready("https://somewhere/model_final.pth")


def test_a_matrix_is_trained_reported_and_not_repeated(workplace, capsys):
    workplace.plan(fcos_baseline={"ap": 30.0}, fcos_crosskd={"ap": 34.0, "cpu": 1.5})
    argv = ["--methods", "alone", "crosskd", "--seeds", "0", "1", "--stretch"]
    assert workplace.run(*argv) == 0
    calls = [call["run"] for call in workplace.calls()]
    assert calls[0] == "fcos_teacher/0" and len(calls) == 7
    assert {call["threads"] for call in workplace.calls()} == {"1"}

    runs = workplace.results()
    assert len(runs) == 7
    crosskd = runs["crosskd", 1]
    assert (crosskd["AP"], crosskd["AP50"], crosskd["APl"], crosskd["APm"]) == (35.0, 55.0, None, None)
    assert crosskd["cpu_seconds"] == 24.0 and crosskd["seconds_per_iteration"] == 0.5
    assert crosskd["curve"][:2] == [[2, 3.0, 6.25], [4, 6.0, 12.5]] and crosskd["curve"][-1] == [16, 24.0, 35.0]
    assert crosskd["parameters"] == runs[ALONE, 1]["parameters"] > 100_000
    assert "fcos_crosskd.py --resume train.seed=1 train.max_iter=16 " in crosskd["command"]
    assert crosskd["versions"]["torch"] == torch.__version__.split("+")[0] and "git" in crosskd
    assert runs[stretched("crosskd"), 0]["max_iter"] == 24  # 16 x 1.5
    table = (workplace.output / "results.md").read_text()
    assert table in capsys.readouterr().out
    row = next(line for line in table.splitlines() if "| crosskd" in line)
    assert "34.5 ± 0.7" in row and "+4.0 ± 0.0" in row
    assert "last quarter of its schedule added -7.0 ± 0.7 AP" in table  # 37.5 at three quarters, 30 and 31 at the end
    assert (workplace.output / "curves.png").is_file()

    assert workplace.run(*argv, "--split", "test") == 0  # reported on another split without training
    assert len(workplace.calls()) == 7
    assert "is there already" in capsys.readouterr().out
    tested = workplace.results()
    assert tested["crosskd", 1]["AP"] == 59.0 and tested["crosskd", 1]["metrics"]["val"]["AP"] == 35.0
    assert tested["teacher", 0]["AP"] == 59.0 and tested["teacher", 0]["metrics"]["val"]["AP"] == 60.0

    assert workplace.run("--methods", "alone", "crosskd", "--seeds", "2") == 0  # a further seed joins the table
    assert len(workplace.calls()) == 9 and set(workplace.results()) >= {("crosskd", 0), ("crosskd", 2)}


def test_processes_without_a_teacher(workplace, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert workplace.run("--methods", "alone", "--seeds", "0", "1", "--processes", "2") == 0
    assert [call["threads"] for call in workplace.calls()] == ["3", "3"]  # the user's word counts
    assert set(workplace.results()) == {(ALONE, 0), (ALONE, 1)}  # nothing is distilled: no teacher


def test_a_failed_run_is_shown_and_the_others_go_on(workplace, capsys):
    workplace.plan(**{"fcos_baseline/0": {"fail_at": 8}})
    argv = ["--methods", "alone", "crosskd", "--seeds", "0", "1", "--stretch"]
    assert workplace.run(*argv) == 1
    output = capsys.readouterr()
    assert "fcos alone seed 0: FAILED, exit code 3" in output.out and "    boom: no such loss" in output.out
    assert f"fcos {stretched('crosskd')} seed 0: FAILED, not started, since it needs: fcos alone seed 0" in output.out
    assert "2 of 7 runs failed: fcos alone seed 0" in output.err
    done = {("crosskd", 0), (ALONE, 1), ("crosskd", 1), (stretched("crosskd"), 1), ("teacher", 0)}
    assert set(workplace.results()) == done

    workplace.plan()  # mended: only what is missing runs, from where it stopped
    before = len(workplace.calls())
    assert workplace.run(*argv) == 0
    calls = [(call["run"], call["start"], call["options"]["train.max_iter"]) for call in workplace.calls()[before:]]
    assert calls == [("fcos_baseline/0", 8, "16"), ("fcos_baseline/0", 0, "16")]
    assert "fcos alone seed 0: started from iteration 8" in capsys.readouterr().out
    assert workplace.results()[ALONE, 0]["cpu_seconds"] == 16.0


def test_without_its_teacher_a_student_does_not_start(workplace, capsys):
    workplace.plan(fcos_teacher={"fail_at": 5})
    argv = ["--methods", "alone", "crosskd", "--seeds", "0"]
    assert workplace.run(*argv) == 1
    assert [call["run"] for call in workplace.calls()] == ["fcos_teacher/0", "fcos_baseline/0"]
    workplace.plan()
    assert workplace.run(*argv) == 0
    assert [(call["run"], call["start"]) for call in workplace.calls()[2:]] == [
        ("fcos_teacher/0", 6),  # resumed, not restarted
        ("fcos_crosskd/0", 0),
    ]


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_is_refused_before_anything_runs(workplace, finished):
    workplace.plan(fcos_baseline={} if finished else {"fail_at": 3})
    argv = ["--methods", "alone", "--seeds", "0"]
    assert workplace.run(*argv) == (0 if finished else 1)
    with pytest.raises(SystemExit, match="seed0 holds another run: its overrides were .* Delete it, or choose"):
        workplace.run("--methods", "alone", "crosskd", "--seeds", "1", "0", "optimizer.lr=1e-4")
    assert len(workplace.calls()) == 1


def test_students_of_another_teacher_are_refused(workplace, capsys):
    argv = ["--methods", "alone", "crosskd", "--seeds", "0"]
    assert workplace.run(*argv) == 0
    (workplace.teacher / "model_final.pth").write_bytes(b"other weights, of another length")
    with pytest.raises(SystemExit, match="crosskd/seed0 holds another run: its teacher has other weights"):
        workplace.run(*argv)


def test_runs_of_other_overrides_are_left_out_of_the_table(workplace, capsys):
    assert workplace.run("--methods", "alone", "--seeds", "0") == 0
    assert workplace.run("--methods", "alone", "--seeds", "1", "optimizer.lr=1e-4") == 0
    assert set(workplace.results()) == {(ALONE, 1)}
    assert "1 finished runs with other overrides" in (workplace.output / "results.md").read_text()


def test_ctrl_c_ends_the_trainings(workplace):
    workplace.plan(fcos_baseline={"hang_at": 4})
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from d2kd.cli import compare
compare.TRAIN, compare.prepare_digits = ({str(FAKE)!r},), lambda: None
sys.exit(compare.main(sys.argv[1:]))
"""
    argv = workplace.argv("--methods", "alone", "--seeds", "0", "1", "--processes", "2")
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *argv], stderr=subprocess.PIPE, text=True)
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
        (["--stretch", "--methods", "crosskd"], "--stretch needs 'alone'"),
        (["--processes", "0"], "at least 1"),
        (["what"], "'what' is no key=value override"),
    ],
)
def test_command_lines_that_mean_nothing(argv, message, capsys):
    with pytest.raises(SystemExit):
        compare.parse_matrix(argv)
    assert message in capsys.readouterr().err


def test_overrides_may_follow_lists():
    parsed, processes = compare.parse_matrix(
        ["--seeds", "0", "1", "optimizer.lr=1e-4", "--methods", "alone", "a.b=x=y"]
    )
    assert (parsed.seeds, parsed.methods) == ((0, 1), ("alone",)) and processes == 1
    assert parsed.overrides == ("optimizer.lr=1e-4", "a.b=x=y")


def test_unknown_method_is_named(workplace):
    with pytest.raises(SystemExit, match="compare.py: fcos nokd needs fcos_nokd.py"):
        workplace.run("--methods", "alone", "nokd")


def shell(tmp_path, name, script, needs=()):
    command = Command(["sh", "-c", script], os.environ, tmp_path / name)
    return Job(name, "any", lambda: command, lambda: "fine", lambda: Progress(0, 1), needs)


def test_detectors_share_a_teacher(tmp_path):
    jobs = compare.build_jobs(matrix(tmp_path, detectors=("fcos", "fcos_small"), methods=("crosskd",)))
    assert [(job.name, job.needs) for job in jobs] == [
        ("fcos teacher", ()),
        ("fcos crosskd seed 0", ("fcos teacher",)),
        ("fcos_small crosskd seed 0", ("fcos teacher",)),
    ]


def test_jobs_run_side_by_side(tmp_path):
    # Each waits for the other: one after the other they would never end.
    scripts = [f"touch {tmp_path}/{a}; until [ -e {tmp_path}/{b} ]; do sleep .05; done" for a, b in ("xy", "yx")]
    jobs = [shell(tmp_path, f"job{i}", script) for i, script in enumerate(scripts)]
    stream = io.StringIO()
    assert run_jobs(jobs, 2, stream) == []
    assert stream.getvalue().count("done in") == 2


def test_jobs_wait_for_what_they_need(tmp_path):
    first = shell(tmp_path, "first", f"sleep .5; touch {tmp_path}/made")
    second = shell(tmp_path, "second", f"test -e {tmp_path}/made", needs=("first",))
    assert run_jobs([first, second], 2, io.StringIO()) == []
    with pytest.raises(ValueError, match="'second' stands twice, or before what it needs"):
        run_jobs([second, first], 2, io.StringIO())


def test_a_folder_is_written_by_one_process(tmp_path):
    job = shell(tmp_path, "job", "true")
    (tmp_path / "job").mkdir()
    stream = io.StringIO()
    with open(tmp_path / "job" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_jobs([job], 1, stream) == ["job"]
    assert "another process is running in" in stream.getvalue()
    assert run_jobs([job], 1, stream) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, lines", [(Terminal(), 2), (io.StringIO(), 3)])
def test_progress_does_not_flood(tmp_path, stream, lines):
    run_jobs([shell(tmp_path, "job", "sleep 2.6")], 1, stream)
    # On a terminal the progress is overwritten by the next line; in a file it is a line of its own.
    assert stream.getvalue().count("0/1 done | job 0/1 | ETA ?") == 1  # the first after two seconds
    assert stream.getvalue().count("\n") == lines


def test_evaluate_checkpoint_measures_the_saved_weights_on_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "SIZES", {"train": 2, "val": 4, "test": 5})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = plan_run(matrix(tmp_path, overrides=("train.device=cpu",)), "fcos", ALONE, 0).load_config()
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    loaded = results.load_detector(cfg, tmp_path / "weights.pth")
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for split in ("val", "test"):
        metrics = results.evaluate_checkpoint(cfg, tmp_path / "weights.pth", split)
        assert set(metrics) == set(METRICS) and 0 <= metrics["AP"] < 5
        assert metrics["APl"] is None  # no object of 96 x 96 pixels
        assert cfg.dataloader.test.dataset.names == f"digits_{split}"


def test_commands_are_shown_as_typed_in_the_clone():
    argv = [sys.executable, *compare.TRAIN, "--config-file", str(compare.ROOT / "configs" / "x.py"), "a=1"]
    assert compare.shown(argv) == "python -m d2kd.cli.train --config-file configs/x.py a=1"
