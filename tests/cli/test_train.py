"""d2kd train: what it takes on its command line, and how it ends. Trainings of it are in tests/engine."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2kd.cli import train
from d2kd.methods import describe
from tests.nodes import checkpoint_of, fcos

#: No data, optimizer and schedule: the run stops before it needs any.
ROOT = Path(__file__).parents[2]
CONFIG = """
import d2kd
from tests.nodes import fcos

model = d2kd.distill(fcos(), teacher=fcos(), teacher_checkpoint="{checkpoint}", method="bckd")
optimizer = lr_multiplier = dict(_target_="builtins.dict", params=dict(_target_="builtins.dict"))
dataloader = dict(train=optimizer, test=optimizer, evaluator=optimizer)
train = d2kd.get_config("common/train.py").train
train.update(device="cpu", output_dir="{output}")
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(checkpoint=checkpoint_of(fcos(), tmp_path), output=tmp_path / "output"))
    return str(path)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_pair_that_does_not_fit_is_one_sentence(config, processes):
    """LD needs distributions, which FCOS does not predict; every rank finds that."""
    argv = ["--config-file", config, "--num-gpus", str(processes), "--dist-url", "auto", "--method", "ld"]
    argv += ["--traceback"] * (processes - 1)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "d2kd", "train", *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout
    *before, sentence = done.stderr.splitlines()
    assert sentence.startswith("d2kd train: ") and sentence.count("ld_main") == 1
    assert not any(line.startswith("d2kd train: ") for line in before)
    assert ("Traceback (most recent call last):" in before) == (processes == 2)  # --traceback
    assert processes == 2 or "ld_main" not in "".join(before)


@pytest.fixture
def instead(monkeypatch):
    """Sets what is called in place of do_train, with the config; logs are as they were."""
    monkeypatch.setattr(train, "start_logs", lambda *args, **kwargs: None)
    return lambda function: monkeypatch.setattr(train, "do_train", lambda cfg, **kwargs: function(cfg))


def test_the_config_is_a_packaged_one_and_the_method_another(instead):
    configs = []
    instead(configs.append)
    assert train.main(["--config-file", "digits/gfl_crosskd.py", "--method", "ld", "model.losses.ld_vlr.weight=3"]) == 0
    (cfg,) = configs
    assert list(cfg.model.losses) == ["ld_main", "ld_vlr", "ld_main_kd", "ld_vlr_kd"]
    assert cfg.model.losses.ld_vlr.weight == 3


def test_the_methods_that_are_no_presets(instead, config):
    configs = []
    instead(configs.append)
    for method in ([], ["--method", "config"], ["--method", "alone"]):
        assert train.main(["--config-file", config, *method]) == 0
    own, named, alone = configs
    assert own.model == named.model and list(own.model.losses) == ["bckd_cls", "bckd_loc"]
    assert alone.model.losses is None and alone.model.student == own.model.student


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--config-file", "digits/fcos_croskd.py"], "did you mean digits/fcos_crosskd.py"),
        (["--config-file", "digits/fcos_crosskd.py", "--method", "croskd"], "did you mean crosskd"),
        (["--config-file", "common/models/fcos.py", "--method", "crosskd"], "expected the model node that d2kd"),
        (["--config-file", "digits/fcos_crosskd.py", "train.seed.x=1"], "but train.seed is 0, which has no keys"),
        (["--config-file", "digits/fcos_crosskd.py", "train.device=tpu"], "train.device is 'tpu'"),
    ],
)
def test_errors_are_one_sentence(argv, sentence, capsys):
    assert train.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("d2kd train: ") and sentence in line


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--num-gpus", "0"], "--num-gpus must be at least 1"),
        (["--num-gpus", "-1"], "--num-gpus must be at least 1"),
        (["--num-machines", "2"], "--num-machines 2 needs --dist-url tcp://HOST:PORT"),
    ],
)
def test_numbers_of_processes_that_cannot_be_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        train.main(["--config-file", "digits/fcos_crosskd.py", *argv])
    assert message in capsys.readouterr().err


def test_what_may_be_a_defect_keeps_its_traceback(instead, config):
    instead(lambda cfg: torch.nn.Conv2d(3, 4, 1, groups=3))
    with pytest.raises(ValueError, match="divisible by groups"):
        train.main(["--config-file", config])


def test_an_error_that_stops_training_is_logged_without_its_traceback(instead, config, caplog, capsys):
    def stopped(cfg):
        try:
            describe("zzz")
        except ValueError:
            logging.getLogger("detectron2.engine.train_loop").exception("Exception during training:")
            raise

    instead(stopped)
    assert train.main(["--config-file", config]) == 2
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage().startswith("Training stopped: Unknown method 'zzz'") and record.exc_info is None
    assert capsys.readouterr().err.startswith("d2kd train: Unknown method 'zzz'")
