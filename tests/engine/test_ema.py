"""
train.ema: what is averaged, and where it goes. That it resumes bit for bit is seen where runs are resumed: in
tests/faults and test_trainer_ranks.py.
"""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import HookBase

import d2kd.engine.train
from d2kd.engine import ConfigError, WeightEMA
from tests.engine.test_hooks import run as train_steps
from tests.engine.test_train import CONFIG, equal, metrics, run, weights, write_distilled

EMA = "train.ema={decay: 0.5}"
SCORES = "model.student.test_score_thresh=0.0"


@pytest.fixture(scope="module")
def distilled(dataset, tmp_path_factory):
    """A distilled config; batch norm of its student is trained."""
    return write_distilled(tmp_path_factory.mktemp("ema"))


@pytest.fixture(scope="module")
def trained(distilled, tmp_path_factory):
    """A run of four iterations, with a checkpoint of each, and its results."""
    output = tmp_path_factory.mktemp("averaged")
    results = run(output, EMA, SCORES, "train.checkpointer.period=1", config=distilled)
    return output, results


class Steps(torch.nn.Module):
    """Its weight is 1 after the first step, 2 after the second, ...; so are its statistics."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("statistics", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, _):
        with torch.no_grad():
            for value in (self.weight, self.statistics, self.steps):
                value += 1
        return {"loss": self.weight * 0}


def test_parameters_and_statistics_are_averaged_and_counts_copied(tmp_path):
    model = Steps()
    ema = WeightEMA(model, 0.3, str(tmp_path))
    train_steps(4, ema, model=model)
    expected = 0.0  # the weight that training begins with
    for step in (1, 2, 3, 4):
        keep = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13 > 0.3, ...
        expected = keep * expected + (1 - keep) * step
    assert ema.model.weight.item() == pytest.approx(expected, abs=1e-6)
    assert ema.model.statistics.item() == pytest.approx(expected, abs=1e-6)
    assert ema.model.steps.item() == model.steps.item() == 4
    assert not ema.model.training and model.training


def test_a_run_that_fails_has_no_final_average(tmp_path):
    class Failing(HookBase):
        def after_step(self):
            raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError):
        train_steps(4, WeightEMA(Steps(), 0.3, str(tmp_path)), Failing(), model=Steps())
    assert not list(tmp_path.iterdir())


def test_the_average_is_of_the_plain_student(trained):
    output, _ = trained
    averaged = torch.load(output / "model_final_ema.pth")
    assert averaged.keys() == {"model", "iteration"} and averaged["iteration"] == 3
    plain = instantiate(LazyConfig.load(CONFIG).model)
    assert averaged["model"].keys() == plain.state_dict().keys()  # no teacher, nothing of distillation
    DetectionCheckpointer(plain).load(str(output / "model_final_ema.pth"))
    assert equal(plain.state_dict(), averaged["model"])
    final = weights(output / "model_final.pth")
    state = torch.load(output / "model_final.pth", weights_only=False)["trainer"]["hooks"]["WeightEMA"]
    assert all(torch.equal(state[f"module.{key}"], value) for key, value in averaged["model"].items())
    moved = [key for key, value in averaged["model"].items() if not torch.equal(value, final[key])]
    assert any("running_var" in key for key in moved) and any(key.endswith("weight") for key in moved)


def test_it_is_evaluated_beside_the_latest_weights(trained, distilled, tmp_path):
    output, results = trained
    rows = metrics(output)
    both = [i for i, row in rows.items() if "ema/bbox/AP" in row and "bbox/AP" in row]
    assert both == [1, 4]
    assert results["ema"]["bbox"]["AP50"] == rows[4]["ema/bbox/AP50"]
    alone = run(
        tmp_path, "--eval-only", f"train.init_checkpoint={output / 'model_final_ema.pth'}", SCORES, config=distilled
    )
    assert alone["bbox"] == pytest.approx(results["ema"]["bbox"], nan_ok=True)


def test_the_best_weights_are_those_of_the_metric(distilled, tmp_path, monkeypatch):
    """model_best.pth has averaged weights if train.best_metric is a metric of theirs."""
    monkeypatch.setattr(d2kd.engine.train, "do_test", lambda cfg, model: {"bbox": {"AP": 1.0}})
    short = ("train.max_iter=2", "train.eval_period=0")
    run(tmp_path, EMA, "train.best_metric=ema/bbox/AP", *short, config=distilled)
    assert json.loads((tmp_path / "model_best.json").read_text())["metric"] == "ema/bbox/AP"
    assert equal(weights(tmp_path / "model_best.pth"), weights(tmp_path / "model_final_ema.pth"))


def test_training_is_the_same_without(trained, distilled, tmp_path):
    output, _ = trained
    run(tmp_path, SCORES, config=distilled)
    assert equal(weights(tmp_path / "model_final.pth"), weights(output / "model_final.pth"))
    assert not (tmp_path / "model_final_ema.pth").exists()
    assert "WeightEMA" not in torch.load(tmp_path / "model_final.pth", weights_only=False)["trainer"]["hooks"]


def test_it_may_begin_and_end_on_resume(distilled, tmp_path):
    short = ("train.eval_period=0",)
    run(tmp_path, "train.max_iter=2", *short, config=distilled)
    before = weights(tmp_path / "model_final.pth")
    run(tmp_path, "--resume", "train.max_iter=2", EMA, *short, config=distilled)  # nothing left to train
    averaged = weights(tmp_path / "model_final_ema.pth")
    assert all(torch.equal(value, before[key]) for key, value in averaged.items())
    run(tmp_path, "--resume", "train.max_iter=3", *short, config=distilled)
    assert "train.ema was {decay}, is null" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    "ema", [0.999, {}, {"decay": 1.0}, {"decay": 0.0}, {"decay": 1}, {"decay": "x"}, {"decay": 0.9, "start": 5}, [1]]
)
def test_what_is_no_average_is_refused(tmp_path, ema):
    config = tmp_path / "mine.py"
    config.write_text(
        f"from detectron2.config import LazyConfig\n_c = LazyConfig.load({CONFIG!r})\n"
        "model, optimizer, lr_multiplier = _c.model, _c.optimizer, _c.lr_multiplier\n"
        f"dataloader, train = _c.dataloader, _c.train\ntrain.ema = {ema!r}\n"
    )
    with pytest.raises(ConfigError, match=r"^train\.ema is .*, expected None, or a mapping with a decay > 0 and < 1"):
        run(tmp_path / "run", config=str(config))
    assert not (tmp_path / "run").exists()


def test_a_metric_of_an_average_that_there_is_not(tmp_path):
    with pytest.raises(ConfigError, match="is 'ema/bbox/AP', a metric of averaged weights, but train.ema is null"):
        run(tmp_path, "train.best_metric=ema/bbox/AP")
