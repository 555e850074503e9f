import itertools

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from d2kd.engine import Trainer


class Model(nn.Module):
    """Two losses of one linear layer; remembers the dtype that its forward computed in."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        nn.init.constant_(self.linear.weight, 0.5)
        self.scale = scale

    def forward(self, x):
        y = self.linear(x)
        self.dtype = y.dtype
        return {"loss_a": self.scale * y.float().square().mean(), "loss_b": y.float().abs().mean()}


def train(cls=Trainer, steps=3, scale=1.0, lr=0.1, prepare=lambda trainer: None, **kwargs):
    torch.manual_seed(0)
    model = Model(scale)
    data = [torch.randn(5, 4) for _ in range(steps)]
    trainer = cls(model, itertools.cycle(data), torch.optim.SGD(model.parameters(), lr=lr), **kwargs)
    prepare(trainer)
    trainer.train(0, steps)
    return trainer


def weight(trainer):
    return trainer.model.linear.weight.detach()


def test_without_options_equals_simple_trainer():
    assert torch.equal(weight(train()), weight(train(SimpleTrainer)))


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_clipping_bounds_the_step_of_all_parameters_together(norm_type):
    clip = {"max_norm": 0.25, "norm_type": norm_type}
    start, end = train(steps=0), train(steps=1, scale=1e3, lr=1.0, clip_grad=clip)
    before, after = (nn.utils.parameters_to_vector(t.model.parameters()) for t in (start, end))
    assert (before - after).norm(norm_type).item() == pytest.approx(0.25, rel=1e-4)
    assert end.storage.history("grad_norm").latest() > 100


def test_clipping_leaves_small_gradients():
    assert torch.equal(weight(train(clip_grad={"max_norm": 1e6})), weight(train()))


def test_clipping_sees_unscaled_gradients():
    def scale_losses(trainer):  # what float16 does on a GPU
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    clip = {"max_norm": 0.05}
    scaled, plain = train(clip_grad=clip, prepare=scale_losses), train(clip_grad=clip)
    torch.testing.assert_close(weight(scaled), weight(plain), rtol=1e-5, atol=1e-6)


def test_bfloat16_on_cpu():
    trainer = train(amp_dtype=torch.bfloat16)
    assert trainer.model.dtype == torch.bfloat16
    assert weight(trainer).dtype == torch.float32 and weight(trainer).isfinite().all()
    assert not torch.equal(weight(trainer), weight(train(steps=0)))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"amp_dtype": torch.float16}, "float16 mixed precision needs a GPU.*train.amp.dtype=bfloat16"),
        ({"amp_dtype": torch.float64}, "amp_dtype is torch.float64"),
        ({"clip_grad": {"max_norm": 0.0}}, "train.clip_grad"),
        ({"clip_grad": {"norm_type": 2.0}}, "train.clip_grad"),
        ({"clip_grad": {"max_norm": 1.0, "value": 3}}, "train.clip_grad"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        train(**kwargs)


def test_state_has_the_scaler():
    scaled = train(steps=1)
    scaled.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = scaled.state_dict()
    assert {"iteration", "optimizer", "grad_scaler"} <= set(state)

    resumed = train(steps=0)
    resumed.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    resumed.load_state_dict(state)
    assert resumed.grad_scaler.get_scale() == 8.0
    resumed.load_state_dict(train(steps=1).state_dict())  # of a run that did not scale
    assert resumed.grad_scaler.get_scale() == 8.0


def test_non_finite_loss_stops_before_the_step():
    trainers = []
    with pytest.raises(FloatingPointError, match="loss_a"):
        train(scale=float("nan"), prepare=trainers.append)
    assert weight(trainers[0]).isfinite().all()


def test_model_left_in_eval_mode():
    with pytest.raises(RuntimeError, match="eval mode"):
        train(prepare=lambda trainer: trainer.model.eval())


def test_an_infinite_gradient_of_finite_losses_stops_before_the_step():
    def infinite(trainer):
        trainer.model.linear.bias.register_hook(lambda grad: torch.full_like(grad, float("inf")))

    held = []
    with pytest.raises(FloatingPointError, match="The gradient's norm is inf though the losses are finite"):
        train(clip_grad={"max_norm": 1.0}, prepare=lambda trainer: (infinite(trainer), held.append(trainer)))
    assert torch.equal(weight(held[0]), weight(train(steps=0)))
