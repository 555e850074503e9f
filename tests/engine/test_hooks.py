import json
import time

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer, hooks
from torch import nn

import d2kd
from d2kd.engine import BestCheckpointer, OptimizerWatch, SeedEachIteration, TrainingCost
from d2kd.losses import FeatureImitation
from tests.helpers import build_detector, distilled


class Draw(nn.Module):
    """Draws a number a step, and as many as it is told besides."""

    def __init__(self, extra=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.extra = extra
        self.drawn = []

    def forward(self, _):
        self.drawn.append(torch.rand(()).item())
        torch.rand(self.extra)
        return {"loss": self.weight * 0}


def run(stop, *extra_hooks, model=None, start=0):
    model = model or Draw()
    trainer = SimpleTrainer(model, [None] * 100, torch.optim.SGD(model.parameters(), lr=0.0))
    trainer.register_hooks(list(extra_hooks))
    trainer.train(start, stop)
    return trainer


def test_training_cost_counts_steps_only_and_resumes(monkeypatch):
    clock = dict(process=0.0, wall=0.0)
    monkeypatch.setattr(time, "process_time", lambda: clock["process"])
    monkeypatch.setattr(time, "perf_counter", lambda: clock["wall"])

    def work(process, wall):
        clock["process"] += process
        clock["wall"] += wall

    class Evaluation(HookBase):
        def after_step(self):
            work(10, 20)

    class Model(Draw):
        def forward(self, x):
            work(1, 3)
            return super().forward(x)

    cost = TrainingCost()
    trainer = run(2, cost, Evaluation(), model=Model())
    assert (cost.cpu_seconds, cost.wall_seconds) == (2, 6)
    assert trainer.storage.latest()["cost/cpu_seconds"] == (2, 2)  # beside the last evaluation

    resumed = TrainingCost()
    resumed.load_state_dict(trainer.state_dict()["hooks"]["TrainingCost"])
    run(3, resumed, model=Model(), start=2)
    assert (resumed.cpu_seconds, resumed.wall_seconds) == (3, 9)


@pytest.mark.parametrize("on_gpu, seconds", [(True, 8), (False, 3)])
def test_training_cost_on_a_gpu_waits_for_its_work(monkeypatch, on_gpu, seconds):
    clock = dict(now=0.0, pending=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])

    def synchronize():
        clock["now"] += clock["pending"]
        clock["pending"] = 0.0

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)

    class Model(Draw):
        def forward(self, x):
            clock["now"] += 3  # started here, done 5 seconds later
            clock["pending"] += 5
            return super().forward(x)

    cost = TrainingCost()
    clock["pending"] = 100.0  # of an evaluation before the step
    run(1, cost, model=Model())
    assert cost.wall_seconds == seconds


def test_each_iteration_draws_the_same_whatever_came_before():
    plain, busy, resumed, other = Draw(), Draw(extra=7), Draw(), Draw()
    run(4, SeedEachIteration(1), model=plain)
    run(4, SeedEachIteration(1), model=busy)
    run(4, SeedEachIteration(1), model=resumed, start=2)
    run(4, SeedEachIteration(2), model=other)
    assert plain.drawn == busy.drawn and len(set(plain.drawn)) == 4
    assert resumed.drawn == plain.drawn[2:]
    assert other.drawn != plain.drawn


def test_each_rank_draws_numbers_of_its_own(monkeypatch):
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        model = Draw()
        run(3, SeedEachIteration(1), model=model)
        drawn += model.drawn
    assert len(set(drawn)) == 6


def best(folder, values, start=0, metric="AP"):
    """A run that is evaluated at every iteration, with ``values``; the model's weight is the iteration."""
    model = Draw()
    iterations = iter(range(start, start + len(values)))
    values = iter(values)

    def evaluate():
        model.weight.data.fill_(next(iterations))
        return {"bbox": {metric: next(values)}}

    checkpointer = BestCheckpointer(1, model, str(folder), f"bbox/{metric}")
    run(start + 3, hooks.EvalHook(1, evaluate), checkpointer, model=model, start=start)
    saved = torch.load(folder / "model_best.pth")
    return saved["model"]["weight"].item(), json.loads((folder / "model_best.json").read_text())


def test_best_checkpoint_and_its_record(tmp_path):
    assert best(tmp_path, [1.0, 3.0, 2.0]) == (1.0, {"metric": "bbox/AP", "value": 3.0, "iteration": 1})
    assert not (tmp_path / "last_checkpoint").exists()  # --resume must not continue from the best
    assert set(torch.load(tmp_path / "model_best.pth")) == {"model", "iteration"}


def test_best_checkpoint_survives_a_resume(tmp_path):
    best(tmp_path, [1.0, 3.0, 2.0])
    assert best(tmp_path, [2.5, 2.9, 2.0], start=3)[0] == 1.0
    assert best(tmp_path, [2.5, 3.5, 3.1], start=3)[0] == 4.0


def test_the_best_of_another_metric_is_not_read(tmp_path):
    best(tmp_path, [50.0, 60.0, 70.0], metric="AP50")
    weight, record = best(tmp_path, [1.0, 3.0, 2.0], start=3)
    assert (weight, record) == (4.0, {"metric": "bbox/AP", "value": 3.0, "iteration": 4})


def test_best_checkpoint_of_a_new_run_starts_over(tmp_path):
    best(tmp_path, [5.0, 6.0, 7.0])
    assert best(tmp_path, [1.0, 0.5, 0.2])[1]["value"] == 1.0


def test_best_checkpoint_passes_over_nan(tmp_path):
    assert best(tmp_path, [float("nan"), 0.0, float("nan")])[0] == 1.0


# ---- OptimizerWatch --------------------------------------------------------------------------------------------------


def idle(rates, model=None, parameters=None):
    """Run as many steps as there are learning rates."""
    model = model or Draw()
    optimizer = torch.optim.SGD(parameters or model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, [None] * len(rates), optimizer)
    setter = hooks.CallbackHook(before_step=lambda x: optimizer.param_groups[0].update(lr=rates[x.iter]))
    trainer.register_hooks([setter, OptimizerWatch(model, optimizer)])
    trainer.train(0, len(rates))


def test_a_learning_rate_of_zero_stops():
    with pytest.raises(ValueError, match="At iteration 52 the learning rate had been 0 for 50 steps"):
        idle([0.1] * 3 + [0.0] * 60)
    idle([0.0] * 49 + [0.1] + [0.0] * 49)  # a warm-up from 0, a schedule down to 0


def test_an_optimizer_of_other_parameters_stops_before_the_first_step():
    with pytest.raises(ValueError, match="None of the model's own trainable parameters is in the optimizer"):
        idle([0.1], parameters=Draw().parameters())


def test_projectors_in_no_group_stop_before_the_first_step():
    losses = {"features": FeatureImitation(region="inside_box", projector_channels=[8, 8])}
    model = distilled(build_detector("FCOS"), build_detector("FCOS", seed=1), losses)
    told = r"0 of the 2 parameters .* distillation.losses.features.projector.\w+ is in no group: .* over d2kd.student"
    with pytest.raises(ValueError, match=told):
        idle([0.1], model, d2kd.student(model).parameters())
