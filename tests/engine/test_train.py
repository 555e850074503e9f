import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import d2kd.engine.train
from d2kd.cli import train as cli
from d2kd.engine import ConfigError
from tests.logs import logs_of_its_own

TRAIN_NET = Path(__file__).parents[2] / "tools" / "train_net.py"

CONFIG = str(Path(__file__).with_name("tiny_retinanet.py"))
DISTILLED = """
import d2kd
from detectron2.config import LazyConfig
_tiny = LazyConfig.load("{config}")
optimizer, lr_multiplier = _tiny.optimizer, _tiny.lr_multiplier
dataloader, train = _tiny.dataloader, _tiny.train
model = d2kd.distill(_tiny.model, teacher=_tiny.model, teacher_checkpoint="{checkpoint}", method="bckd")
"""


def write_distilled(folder):
    """The config of the tiny detector with a teacher of random weights, which lie beside it; its path."""
    torch.save({"model": instantiate(LazyConfig.load(CONFIG).model).state_dict()}, folder / "teacher.pth")
    path = folder / "distilled.py"
    path.write_text(DISTILLED.format(config=CONFIG, checkpoint=folder / "teacher.pth"))
    return str(path)


def run(output, *argv, config=CONFIG):
    """One process of `d2kd.cli.train`, this one; options first, then overrides."""
    argv = ["--config-file", config, *argv, f"train.output_dir={output}"]
    with logs_of_its_own():
        return cli.run(cli.argument_parser().parse_args(argv))


def metrics(output):
    """iteration -> scalars of metrics.json."""
    rows = {}
    for line in (output / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["iteration"], {}).update(row)
    return rows


def weights(path):
    return torch.load(path)["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A finished run of 4 iterations, and how often it was evaluated."""
    output = tmp_path_factory.mktemp("trained")
    evaluations = []
    with pytest.MonkeyPatch.context() as patch:
        do_test = d2kd.engine.train.do_test
        patch.setattr(d2kd.engine.train, "do_test", lambda *a: evaluations.append(1) or do_test(*a))
        results = run(output)
    return output, results, len(evaluations)


def test_trains_and_evaluates(trained):
    output, results, evaluations = trained
    assert evaluations == 2  # after iterations 2 and 4
    assert results["bbox"]["AP"] == 0.0  # nothing is above the threshold yet
    rows = metrics(output)
    assert [i for i, row in rows.items() if "bbox/AP" in row] == [1, 4]
    logged = {"total_loss", "loss_cls", "loss_box_reg", "lr", "cost/cpu_seconds", "cost/wall_seconds"}
    assert all(logged <= set(rows[i]) for i in range(4))
    assert 0 < rows[1]["cost/cpu_seconds"] < rows[4]["cost/cpu_seconds"]
    assert list(output.glob("events.out.tfevents.*"))
    best = torch.load(output / "model_best.pth")
    assert best["iteration"] == 1 and "trainer" not in best
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    first, last = weights(output / "model_0000001.pth"), weights(output / "model_final.pth")
    assert equal(first, best["model"]) and not equal(first, last)


@pytest.fixture
def distilled(trained, tmp_path):
    """A config whose teacher is the trained run."""
    path = tmp_path / "distilled.py"
    path.write_text(DISTILLED.format(config=CONFIG, checkpoint=trained[0] / "model_final.pth"))
    return str(path)


def test_resumed_run_equals_an_uninterrupted_one(distilled, tmp_path):
    # Not with the stock RetinaNet: the running normalizer of its losses is in no checkpoint.
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, "train.max_iter=6", config=distilled)
    run(resumed, "train.max_iter=3", config=distilled)
    run(resumed, "--resume", "train.max_iter=6", config=distilled)
    assert equal(weights(straight / "model_final.pth"), weights(resumed / "model_final.pth"))
    rows = metrics(resumed)
    assert list(rows) == list(range(7))
    assert rows[2]["cost/cpu_seconds"] < rows[3]["cost/cpu_seconds"]

    size = (resumed / "metrics.json").stat().st_size
    assert "bbox" in run(resumed, "--resume", "train.max_iter=6", config=distilled)  # nothing left to train
    assert (resumed / "metrics.json").stat().st_size == size


def test_an_evaluation_in_which_a_run_has_ended_is_made_up_for_by_its_resume(distilled, tmp_path, monkeypatch):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, "train.max_iter=5", config=distilled)

    def ctrl_c(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(d2kd.engine.train, "do_test", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            run(resumed, "train.max_iter=5", config=distilled)
    assert not (resumed / "model_best.json").exists()
    run(resumed, "--resume", "train.max_iter=5", config=distilled)
    assert [i for i, row in metrics(resumed).items() if "bbox/AP" in row] == [1, 3, 5]
    assert (resumed / "model_best.json").read_text() == (straight / "model_best.json").read_text()
    for name in ("model_best.pth", "model_final.pth"):
        assert equal(weights(straight / name), weights(resumed / name))
    assert "metrics.json has no evaluation after 2 iterations: the run begins" in (resumed / "log.txt").read_text()


def test_what_refuses_a_run_is_found_before_another_is_overwritten(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match="names the dataset 'nope'"):
        run(folder, "--overwrite", "dataloader.train.dataset.names=nope")
    assert {path.name for path in folder.iterdir()} >= before
    assert (folder / "metrics.json").read_bytes() == (trained[0] / "metrics.json").read_bytes()


def test_checkpoints_that_signals_have_left_are_counted(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    for name in ("model_0000000.pth", "model_0000002.pth"):
        shutil.copy(folder / "model_0000001.pth", folder / name)
    (folder / ".model_0000003.pth.0123456789abcdef.partial").touch()
    run(folder, "--resume", "train.max_iter=6", "train.checkpointer={period: 5, max_to_keep: 2}", "train.eval_period=0")
    assert sorted(path.name for path in folder.glob("model_0*")) == ["model_0000003.pth", "model_0000004.pth"]
    assert not list(folder.glob(".*.partial"))


def test_a_last_step_that_fails_is_no_end(tmp_path, monkeypatch):
    step = d2kd.engine.train.Trainer.run_step

    def fails(trainer):
        if trainer.iter == 3:
            raise OSError("image is truncated")
        step(trainer)

    monkeypatch.setattr(d2kd.engine.train.Trainer, "run_step", fails)
    with pytest.raises(OSError, match="image is truncated"):
        run(tmp_path)
    assert [i for i, row in metrics(tmp_path).items() if "bbox/AP" in row] == [1]
    assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == 1


def test_all_ranks_evaluate_the_statistics_that_are_saved(tmp_path, monkeypatch):
    calls = []
    do_test = d2kd.engine.train.do_test
    monkeypatch.setattr(d2kd.engine.train, "share_norm_statistics", lambda model: calls.append(("share", model)))
    monkeypatch.setattr(d2kd.engine.train, "do_test", lambda cfg, x: calls.append(("test", x)) or do_test(cfg, x))
    run(tmp_path, "train.ema={decay: 0.5}", "train.max_iter=1")
    assert [name for name, _ in calls] == ["share", "test"] * 2
    assert calls[0][1] is calls[1][1] and calls[2][1] is calls[3][1] and calls[0][1] is not calls[2][1]


def test_seed_bfloat16_and_clipping(trained, tmp_path):
    outcomes = [weights(trained[0] / "model_0000001.pth")]
    for name, override in {
        "seed": "train.seed=2",
        "amp": "train.amp={enabled: True, dtype: bfloat16}",
        "clip": "train.clip_grad={max_norm: 0.01}",
    }.items():
        run(tmp_path / name, "train.max_iter=2", "train.eval_period=0", override)
        outcomes.append(weights(tmp_path / name / "model_final.pth"))
    assert all(value.isfinite().all() for outcome in outcomes for value in outcome.values())
    assert not any(equal(a, b) for i, a in enumerate(outcomes) for b in outcomes[:i])


def test_what_a_step_draws_follows_from_the_runs_seed(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(d2kd.engine.train.Trainer, "run_step", lambda trainer: drawn.append(torch.rand(()).item()))
    monkeypatch.setattr(d2kd.engine.train, "do_test", lambda *args: {})
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(tmp_path / name, "train.max_iter=2", f"train.seed={seed}")
    first, again, other = drawn[:2], drawn[2:4], drawn[4:]
    assert first == again and len({*first, *other}) == 4


def test_an_evaluation_that_is_killed_leaves_the_runs_config(trained, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    found = []
    monkeypatch.setattr(cli, "do_eval", lambda *_, **__: found.append((folder / "config.yaml").read_text()))
    run(folder, "--eval-only", f"train.init_checkpoint={folder}/model_best.pth", "optimizer.lr=0.5")
    assert found == [(trained[0] / "config.yaml").read_text()]


def test_eval_only(trained, tmp_path):
    final = trained[0] / "model_final.pth"
    results = run(tmp_path, "--eval-only", f"train.init_checkpoint={final}", "model.test_score_thresh=0.0")
    assert 0.0 <= results["bbox"]["AP"] <= 100.0
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert (evaluation["weights"], evaluation["complete"]) == (str(final), True)
    assert evaluation["results"]["bbox"]["AP"] == results["bbox"]["AP"]
    assert run(trained[0], "--eval-only", "--resume")["bbox"]["AP"] == 0.0
    with pytest.raises(ConfigError, match="train.init_checkpoint is empty"):
        run(tmp_path, "--eval-only")


def test_a_folder_with_another_run_is_refused_unless_it_is_continued_or_overwritten(trained, distilled, tmp_path):
    folder = tmp_path / "run"
    run(folder, "train.max_iter=2")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("model", "metrics"))}
    with pytest.raises(ConfigError, match="has another run's files .*--resume goes on with it, --overwrite deletes"):
        run(folder, "train.max_iter=3")
    assert before == {name: (folder / name).read_bytes() for name in before}
    record = (folder / "config.yaml").read_bytes()
    with pytest.raises(FileNotFoundError):
        run(folder, "--overwrite", "train.max_iter=3", "model.teacher.checkpoint=no.pth", config=distilled)
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert (folder / "config.yaml").read_bytes() == record
    run(folder, "--overwrite", "train.max_iter=3", "train.checkpointer.period=3")
    assert [path.name for path in sorted(folder.glob("model_0*.pth"))] == ["model_0000002.pth"]
    assert list(metrics(folder)) == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_with_the_teacher_is_always_refused(trained, distilled, options):
    with pytest.raises(ConfigError, match=r"holds the teacher's checkpoint \(model_final.pth\)"):
        run(trained[0], *options, config=distilled)


def test_two_processes(tmp_path):
    command = [sys.executable, str(TRAIN_NET), "--config-file", CONFIG, "--num-gpus=2", "--dist-url=auto"]
    command += [f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=0"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(TRAIN_NET.parents[1]), env.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path)
    assert rows[0]["loss_cls"] > 0 and rows[2]["bbox/AP"] == 0.0
    model = instantiate(LazyConfig.load(CONFIG).model)
    incompatible = model.load_state_dict(weights(tmp_path / "model_final.pth"))
    assert not incompatible.missing_keys and not incompatible.unexpected_keys


def test_distilled_run_and_its_baseline(trained, distilled, tmp_path):
    short = ("train.max_iter=2", "train.eval_period=0")
    run(tmp_path / "kd", "--check-teacher", *short, config=distilled)
    log = (tmp_path / "kd" / "log.txt").read_text()
    assert 0 < log.index("teacher AP 0.00\n") < log.index("Starting training")
    assert log.endswith("teacher AP 0.00, student AP 0.00\n")
    rows = metrics(tmp_path / "kd")
    assert rows[0]["loss_kd_bckd_cls"] > 0

    run(tmp_path / "alone", *short, "model.losses=null", config=distilled)
    alone = weights(tmp_path / "alone" / "model_final.pth")
    plain = weights(trained[0] / "model_0000001.pth")
    assert all(torch.equal(alone[key], plain[key]) for key in plain)  # the stock detector's own run
    # Same initial weights and same images: only the distillation terms differ at the first step.
    assert metrics(tmp_path / "alone")[0]["loss_cls"] == rows[0]["loss_cls"]

    stock = instantiate(LazyConfig.load(CONFIG).model)
    incompatible = stock.load_state_dict(weights(tmp_path / "kd" / "model_final.pth"), strict=False)
    assert not incompatible.missing_keys
    assert all(key.startswith("distillation.") for key in incompatible.unexpected_keys)


def test_sheets_for_tensorboard_leave_the_weights_as_they_are(distilled, tmp_path):
    run(tmp_path / "plain", config=distilled)
    run(tmp_path / "seen", "train.vis_period=2", config=distilled)
    assert equal(weights(tmp_path / "plain" / "model_final.pth"), weights(tmp_path / "seen" / "model_final.pth"))
    events = EventAccumulator(str(tmp_path / "seen"))
    events.Reload()
    assert events.Tags()["images"] == ["sheet/0", "sheet/1"]
    assert [event.step for event in events.Images("sheet/0")] == [1, 3]


def test_missing_teacher_is_known_before_data_is_read(distilled, tmp_path):
    with pytest.raises(FileNotFoundError, match="teacher"):
        run(
            tmp_path,
            "model.teacher.checkpoint=no/such.pth",
            "dataloader.train.dataset.names=no_such_dataset",
            config=distilled,
        )


def test_mapper_in_another_channel_order(tmp_path):
    with pytest.raises(ConfigError, match="mapper.image_format is 'RGB', but model.input_format is 'BGR'"):
        run(tmp_path, "dataloader.train.mapper.image_format=RGB")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config-file", "no/such.py"], "no/such.py"),
        (["--config-file", CONFIG, "train.max_iter=1", "--resume"], "'--resume' is no key=value"),
        (["train.max_iter=1", "--config-file", CONFIG], "'--config-file' is no key=value"),
        (["--config-file", CONFIG, "train.init_checkpoint=no/such.pth"], "init_checkpoint is 'no/such.pth'"),
        (["--config-file", CONFIG, "train.seed=-1"], "train.seed is -1"),
    ],
)
def test_users_errors_are_sentences(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_net.py", *argv])
    with pytest.raises(SystemExit) as exit_:
        raise SystemExit(cli.main())
    assert exit_.value.code != 0 and message in capsys.readouterr().err
